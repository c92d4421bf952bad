//! Keeps one probe running and turns what it says, and what it does not, into events.

use cic_common::backoff::Backoff;
use cic_common::gpu::{ProbeFault, ProbeMessage, XidSource};
use cic_common::supervise::TaskResult;
use cic_common::time::{Clock, Mono};
use cic_common::wire::frame::FrameError;
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::device::is_there;
use super::probe::Probe;
use super::request::GpuRequests;
use super::spec::GpuSpec;
use super::vigil::{Alarm, Vigil, millis};
use crate::core::Event;
use crate::core::gpu::GpuEvent;

/// Unexpected ends in a row after which there is nothing to wait for. One may be the kernel's need of memory.
const ENDS_MAX: u32 = 3;

/// What is said to be stuck when a probe finds another that does not end; the words are in `docs/gpu-probe.md`.
const EARLIER_PROBE: &str = "an earlier cic-gpu-probe";

/// Watches the GPUs until cancelled. There is never more than one probe: one that is stuck inside the driver is waited
/// for, however long that takes.
///
/// # Errors
/// Never; the signature is that of a task.
pub async fn watch(
    spec: GpuSpec,
    clock: Clock,
    events: mpsc::Sender<Event>,
    requests: GpuRequests,
    token: CancellationToken,
) -> TaskResult {
    let spans = spec.spans;
    let pauses = Backoff::new(spans.restart_first, spans.restart_max);
    let mut watcher =
        Watcher { spec, clock, events, requests, pauses, end_count: 0, last_fault: None, stuck_since: None };
    let mut probe = None;
    loop {
        // Cancel safe: the probe stays in its place and is stopped below.
        let pause = tokio::select! {
            () = token.cancelled() => break,
            pause = watcher.turn(&mut probe) => match pause {
                Ok(pause) => pause,
                Err(Unheard) => break,
            },
        };
        // Cancel safe: only waits.
        tokio::select! {
            () = token.cancelled() => break,
            () = sleep(pause) => {}
        }
    }
    if let Some(probe) = probe
        && !probe.stop(&spans).await
    {
        warn!("gpu probe is stuck in the driver and left behind");
    }
    Ok(())
}

/// The queue of events is closed: the program ends.
#[derive(Debug)]
struct Unheard;

/// How a probe came to its end.
#[derive(Debug)]
enum End {
    /// It said why there is nothing to read.
    Faulted(ProbeFault),
    /// It was killed for being stuck.
    Killed,
    Unexpected(String),
}

struct Watcher {
    spec: GpuSpec,
    clock: Clock,
    events: mpsc::Sender<Event>,
    requests: GpuRequests,
    pauses: Backoff,
    /// Unexpected ends in a row, each soon after its start.
    end_count: u32,
    /// The last one logged.
    last_fault: Option<ProbeFault>,
    /// Since when an earlier probe, which is no child of this process, is known to be stuck.
    stuck_since: Option<Mono>,
}

impl Watcher {
    /// Runs one probe from its start to its end, if there is a device. Returns how long to wait before the next turn.
    async fn turn(&mut self, place: &mut Option<Probe>) -> Result<std::time::Duration, Unheard> {
        let spans = self.spec.spans;
        if !is_there(&self.spec.root) {
            self.send(GpuEvent::Absent).await?;
            return Ok(spans.retry_every);
        }
        let began = self.clock.now();
        let probe = match Probe::start(&self.spec) {
            Ok(probe) => place.insert(probe),
            Err(error) => {
                let reason = format!("{} cannot be started: {error}", self.spec.probe.display());
                warn!(reason, "gpu probe");
                self.send(GpuEvent::Blind { reason }).await?;
                return Ok(self.pauses.next_wait());
            }
        };
        info!(pid = probe.pid(), "gpu probe started");
        let end = self.attend(probe).await?;
        *place = None;
        if self.clock.now().since(began) >= spans.restart_max {
            self.end_count = 0;
            self.pauses.reset();
        }
        match end {
            End::Faulted(fault) => {
                if self.last_fault.as_ref() != Some(&fault) {
                    warn!(%fault, retry_every = ?spans.retry_every, "gpu probe cannot read any GPU");
                    self.last_fault = Some(fault);
                }
                self.end_count = 0;
                return Ok(spans.retry_every);
            }
            End::Killed => warn!("gpu probe was stuck and ended at last"),
            End::Unexpected(how) => {
                warn!(how, "gpu probe ended");
                self.end_count += 1;
                if self.end_count >= ENDS_MAX {
                    let reason =
                        format!("cic-gpu-probe ended {} times in a row, last by {how}", self.end_count);
                    self.send(GpuEvent::Blind { reason }).await?;
                }
            }
        }
        Ok(self.pauses.next_wait())
    }

    async fn attend(&mut self, probe: &mut Probe) -> Result<End, Unheard> {
        let mut vigil = Vigil::begin(self.clock.now(), self.spec.spans);
        let mut fault = None;
        let broken = loop {
            let due = self.clock.instant(vigil.due());
            // Cancel safe: what was read of a frame is kept, so is a request; the deadline is computed anew.
            tokio::select! {
                message = probe.next() => match message {
                    Ok(message) => {
                        vigil.hear(self.clock.now(), &message);
                        if let ProbeMessage::Failed { fault: said } = &message {
                            fault = Some(said.clone());
                        }
                        self.tell(message).await?;
                    }
                    Err(FrameError::Closed) => break None,
                    Err(error) => break Some(error),
                },
                () = self.requests.asked() => probe.ask_sample().await,
                () = sleep_until(due.into()) => self.wake(&mut vigil, probe).await?,
            }
        };
        if broken.is_some() {
            probe.kill();
        }
        let how = self.reap(probe).await?;
        Ok(match (fault, broken) {
            (Some(fault), _) => End::Faulted(fault),
            (None, _) if vigil.has_killed() => End::Killed,
            (None, Some(error)) => End::Unexpected(error.to_string()),
            (None, None) => End::Unexpected(how),
        })
    }

    async fn wake(&mut self, vigil: &mut Vigil, probe: &mut Probe) -> Result<(), Unheard> {
        while let Some(alarm) = vigil.wake(self.clock.now()) {
            match alarm {
                Alarm::Tell { call, for_ms } => self.send(GpuEvent::Wedged { call, for_ms }).await?,
                Alarm::Kill => {
                    warn!(pid = probe.pid(), "gpu probe is stuck: kill it");
                    probe.kill();
                }
            }
        }
        Ok(())
    }

    /// Waits for the end of a probe that says nothing more. Returns how it ended.
    async fn reap(&mut self, probe: &mut Probe) -> Result<String, Unheard> {
        let began = self.clock.now();
        loop {
            match probe.ended_within(self.spec.spans.end_within).await {
                Some(Ok(status)) => return Ok(status.to_string()),
                Some(Err(error)) => return Ok(error.to_string()),
                None => probe.kill(),
            }
            let silent_for = self.clock.now().since(began);
            if silent_for >= self.spec.spans.stuck_after {
                let for_ms = millis(silent_for);
                self.send(GpuEvent::Wedged { call: "end of the probe".to_owned(), for_ms }).await?;
            }
        }
    }

    async fn tell(&mut self, message: ProbeMessage) -> Result<(), Unheard> {
        let event = match message {
            ProbeMessage::Started { version } => {
                debug!(version, "gpu probe speaks");
                return Ok(());
            }
            ProbeMessage::Calling { .. } => return Ok(()),
            ProbeMessage::Ready { inventory } => {
                (self.last_fault, self.stuck_since) = (None, None);
                GpuEvent::Ready(inventory)
            }
            ProbeMessage::Sampled { is_full, device_count, samples, lost } => {
                GpuEvent::Sampled { is_full, device_count, samples, lost }
            }
            ProbeMessage::Xid(xid) => GpuEvent::Xid(xid),
            ProbeMessage::EventsBlind { reason } => GpuEvent::XidsBlind { source: XidSource::Nvml, reason },
            ProbeMessage::Failed { fault } => self.faulted(fault),
        };
        self.send(event).await
    }

    /// A driver that holds a process of an earlier agent is as stuck as one that holds a child of this one.
    fn faulted(&mut self, fault: ProbeFault) -> GpuEvent {
        match fault {
            ProbeFault::Stuck { .. } => {
                let now = self.clock.now();
                let since = *self.stuck_since.get_or_insert(now);
                GpuEvent::Wedged { call: EARLIER_PROBE.to_owned(), for_ms: millis(now.since(since)) }
            }
            ProbeFault::NoDriver { .. }
            | ProbeFault::VersionMismatch { .. }
            | ProbeFault::NoPermission { .. }
            | ProbeFault::Driver { .. }
            | ProbeFault::Lock { .. } => {
                self.stuck_since = None;
                GpuEvent::Blind { reason: fault.to_string() }
            }
        }
    }

    async fn send(&self, event: GpuEvent) -> Result<(), Unheard> {
        self.events.send(Event::Gpu(event)).await.map_err(|_| Unheard)
    }
}
