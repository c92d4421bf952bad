//! XIDs as the driver tells of them, on a thread of their own.
//!
//! A wait that fails never spins: each failure is followed by a longer pause, after which the set is made anew from
//! the GPUs that still take part. One lost GPU would else make the wait of all fail for ever.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use cic_common::backoff::Backoff;
use cic_common::gpu::{ProbeMessage, XidSeen, XidSource};
use cic_common::time::Clock;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::event::EventData;
use nvml_wrapper::{EventSet, Nvml};

use crate::voice::Voice;

/// Longest one wait takes, and so about as long as the end of the probe does. The agent gives that 2 s.
const WAIT: Duration = Duration::from_millis(500);
const WAIT_MS: u32 = 500;

/// Pauses after failed waits.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Failures in a row after which the agent is told that XIDs are missed.
const FAILURES_MAX: u32 = 3;

/// NVML's word for an XID that it does not know.
const XID_UNKNOWN: u32 = 999;

/// A set, and by index the GPUs that are not in it, each with the reason.
pub(crate) struct Registered<'nvml> {
    set: EventSet<'nvml>,
    left_out: BTreeMap<u32, NvmlError>,
}

/// Registers every GPU that takes part in one new set.
///
/// # Errors
/// When none does: the reason of the first.
pub(crate) fn register(nvml: &Nvml) -> Result<Registered<'_>, NvmlError> {
    let count = nvml.device_count()?;
    let mut left_out = BTreeMap::new();
    // At most one turn for each GPU: each further one begins with one more left out.
    'anew: loop {
        let mut set = nvml.create_event_set()?;
        for index in (0..count).filter(|index| !left_out.contains_key(index)) {
            let refused = match nvml.device_by_index(index) {
                Ok(device) => match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                    Ok(same) => {
                        set = same;
                        continue;
                    }
                    Err(error) => error.error,
                },
                Err(error) => error,
            };
            left_out.insert(index, refused);
            continue 'anew;
        }
        if left_out.len() < count as usize {
            return Ok(Registered { set, left_out });
        }
        set.release_events()?;
        return Err(left_out.into_values().next().unwrap_or(NvmlError::NotFound));
    }
}

/// Tells of XIDs until it is stopped.
pub(crate) struct Watch<'nvml> {
    nvml: &'nvml Nvml,
    voice: Voice,
    /// Nothing is ever sent through it; closed means stop.
    stop: Receiver<()>,
    clock: Clock,
    failure_count: u32,
    pauses: Backoff,
    is_told: bool,
}

impl<'nvml> Watch<'nvml> {
    pub(crate) fn new(nvml: &'nvml Nvml, voice: Voice, stop: Receiver<()>) -> Self {
        let pauses = Backoff::new(RETRY_FIRST, RETRY_MAX);
        Self { nvml, voice, stop, clock: Clock::start(), failure_count: 0, pauses, is_told: false }
    }

    /// # Errors
    /// When nobody listens any more.
    pub(crate) fn run(mut self, first: Result<Registered<'nvml>, NvmlError>) -> io::Result<()> {
        let mut registered = first;
        loop {
            let error = match registered {
                Ok(registered) => match self.listen(&registered)? {
                    Some(error) => error,
                    None => return Ok(()),
                },
                Err(error) => error,
            };
            self.failure_count += 1;
            // What the driver does not have it will not come to have.
            let is_final = matches!(error, NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_));
            if is_final || self.failure_count >= FAILURES_MAX {
                self.tell_blind(error.to_string())?;
            }
            let pause = self.pauses.next_wait();
            if is_final || self.is_stopped_within(pause) {
                return Ok(());
            }
            registered = register(self.nvml);
        }
    }

    /// Tells of the set's XIDs until a wait fails, or it is stopped (`None`).
    fn listen(&mut self, registered: &Registered<'nvml>) -> io::Result<Option<NvmlError>> {
        if let Some((index, error)) = registered.left_out.first_key_value() {
            self.tell_blind(format!("no XID events from gpu {index}: {error}"))?;
        }
        loop {
            let began = self.clock.now();
            match registered.set.wait(WAIT_MS) {
                Ok(event) => self.voice.say(&ProbeMessage::Xid(seen(&event)))?,
                // nvml.h: "in certain conditions" it comes back early. It may do so every time.
                Err(NvmlError::Timeout) => {
                    let took = self.clock.now().since(began);
                    self.is_stopped_within(WAIT.saturating_sub(took));
                }
                Err(error) => return Ok(Some(error)),
            }
            self.failure_count = 0;
            self.pauses.reset();
            if self.is_stopped_within(Duration::ZERO) {
                return Ok(None);
            }
        }
    }

    fn tell_blind(&mut self, reason: String) -> io::Result<()> {
        if self.is_told {
            return Ok(());
        }
        self.is_told = true;
        self.voice.say(&ProbeMessage::EventsBlind { reason })
    }

    fn is_stopped_within(&self, span: Duration) -> bool {
        matches!(self.stop.recv_timeout(span), Err(RecvTimeoutError::Disconnected))
    }
}

fn seen(event: &EventData<'_>) -> XidSeen {
    XidSeen {
        source: XidSource::Nvml,
        // A GPU that is gone may not say any more where it was.
        pci: event.device.pci_info().ok().and_then(|pci| pci.bus_id.parse().ok()),
        code: match event.event_data {
            Some(XidError::Value(code)) => code.try_into().unwrap_or(XID_UNKNOWN),
            Some(XidError::Unknown) | None => XID_UNKNOWN,
        },
        pid: None,
        interrupt_info: None,
        recovery: None,
        text: String::new(),
    }
}
