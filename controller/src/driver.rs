//! Joins the shells to the core: one task that owns the fleet and waits for nothing but the next event.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cic_common::id::{OperationId, Term};
use cic_common::supervise::TaskResult;
use cic_common::time::{Clock, Mono};
use cic_common::wire::order::Order;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::core::{Action, CloudFault, Event, EventRecord, Fleet, Message, Operation, Severity};
use crate::ha::{Leadership, Reign, Turn, Turns};
use crate::histogram::Histogram;
use crate::provision::{LaunchOrder, Provision};
use crate::reach::Reach;
use crate::record::Recorder;
use crate::store::{StoreQueue, Write};
use crate::views::{Gallery, Published, Views};

/// Events that wait for the core. A step takes microseconds; full means that the senders wait.
pub const EVENTS_WAITING_MAX: usize = 4096;

/// Operators' wishes that wait.
const ASKS_WAITING_MAX: usize = 64;

/// Events taken between two looks at the clock and the view.
const BATCH_MAX: usize = 256;

/// A core that asks to be called in the past is called at most this often.
const TICK_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How long an operator's wish may take until it is stored.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// The wish was not stored in time; it may still be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not stored within {ASK_WITHIN:?}")]
pub struct NotStored;

/// What the driver did, for `/metrics`.
#[derive(Debug, Default)]
pub struct StepCounts {
    pub steps: AtomicU64,
    pub actions: AtomicU64,
    /// Each without what becomes of its actions.
    pub spans: Histogram,
    pub nanos_max: AtomicU64,
    /// Most events that ever waited for the core.
    pub events_waiting_max: AtomicUsize,
}

#[derive(Debug)]
struct Ask {
    event: Event,
    stored: oneshot::Sender<()>,
}

/// Brings operators' wishes to the core. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Asking(mpsc::Sender<Ask>);

impl Asking {
    /// Hands `event` to the core and waits until all that it decided on it is stored.
    ///
    /// # Errors
    /// When that takes too long. The wish may be fulfilled later all the same.
    pub async fn ask(&self, event: Event) -> Result<(), NotStored> {
        let (stored, answer) = oneshot::channel();
        let asked = async {
            self.0.send(Ask { event, stored }).await.map_err(|_| NotStored)?;
            answer.await.map_err(|_| NotStored)
        };
        tokio::time::timeout(ASK_WITHIN, asked).await.unwrap_or(Err(NotStored))
    }
}

/// The shells that perform actions. None of them makes the driver wait.
pub struct Shells {
    pub leadership: Leadership,
    pub provision: Provision,
    pub network: Box<dyn Network>,
    pub reach: Reach,
}

/// The ways to the nodes, or a stand-in where there are none.
pub trait Network: Send {
    /// Performs `Send`, `PublishRoutes`, `Poll` and its part of `ForgetNode` without waiting.
    fn perform(&mut self, action: Action);

    /// The core has taken the oldest batch of heartbeats that was not taken yet.
    fn beats_taken(&mut self) {}
}

impl std::fmt::Debug for Shells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shells").field("leadership", &self.leadership).finish_non_exhaustive()
    }
}

/// What flows into the driver.
#[derive(Debug)]
pub struct Inlets {
    pub events: mpsc::Receiver<Event>,
    /// When it leads, and when it follows.
    pub turns: Turns,
}

/// What it leads with, while it does.
#[derive(Debug)]
struct Leading {
    term: Term,
    store: StoreQueue,
    recorded: mpsc::Receiver<OperationId>,
}

/// The driver.
pub struct Driver {
    fleet: Fleet,
    clock: Clock,
    inlets: Inlets,
    asks: mpsc::Receiver<Ask>,
    shells: Shells,
    /// `None`: it follows another, and performs nothing but what a standby does.
    leading: Option<Leading>,
    rows_at: Mono,
    recorder: Option<Recorder>,
    gallery: Gallery,
    ticked_at: Mono,
    counts: Arc<StepCounts>,
    actions: Vec<Action>,
    /// Operations that the store's full queue did not take yet, oldest first.
    unrecorded: VecDeque<Operation>,
}

/// What the API needs of a driver.
#[derive(Debug, Clone)]
pub struct Outlets {
    pub views: Views,
    pub asking: Asking,
    pub counts: Arc<StepCounts>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Driver {
    #[must_use]
    pub fn new(
        fleet: Fleet,
        clock: Clock,
        inlets: Inlets,
        shells: Shells,
        recorder: Option<Recorder>,
    ) -> (Self, Outlets) {
        let (gallery, views) = Gallery::new(clock);
        let (ask, asks) = mpsc::channel(ASKS_WAITING_MAX);
        let counts = Arc::new(StepCounts::default());
        let outlets = Outlets { views, asking: Asking(ask), counts: Arc::clone(&counts) };
        let driver = Self {
            fleet,
            clock,
            inlets,
            asks,
            shells,
            leading: None,
            rows_at: Mono::ZERO,
            recorder,
            gallery,
            ticked_at: Mono::ZERO,
            counts,
            actions: Vec::new(),
            unrecorded: VecDeque::new(),
        };
        (driver, outlets)
    }

    /// Runs the fleet from its first turn on, until `token` is cancelled. The nodes are left alone then.
    ///
    /// # Errors
    /// Never; an end before the program was told to stop is the failure.
    pub async fn run(mut self, token: CancellationToken) -> TaskResult {
        // Cancel safe: a turn is only taken with its arm.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            turn = self.inlets.turns.next() => self.take(turn),
        }
        loop {
            let (wake, tick) = self.wake();
            // Cancel safe: receiving and sleeping lose nothing when another arm is taken. A closed queue means
            // that the program stops.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                turn = self.inlets.turns.next() => self.take(turn),
                Some(operation) = recorded(&mut self.leading) => self.step(Event::Recorded { operation }),
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.obey(ask),
                    None => return Ok(()),
                },
                event = self.inlets.events.recv() => match event {
                    Some(event) => self.step(event),
                    None => return Ok(()),
                },
                () = self.gallery.wanted() => self.gallery.want(),
                () = sleep_until(&self.clock, wake) => if tick.is_some_and(|at| at <= self.clock.now()) {
                    self.ticked_at = self.clock.now();
                    self.step(Event::Tick);
                },
            }
            self.drain();
            self.record();
            if self.gallery.due() <= self.clock.now() {
                self.publish();
            }
        }
    }

    /// Becomes the leader, or a standby. What was decided before and is not stored is void.
    fn take(&mut self, turn: Turn) {
        self.unrecorded.clear();
        match turn {
            Turn::Lead(Reign { restored, queue, recorded }) => {
                self.leading = Some(Leading { term: restored.term, store: queue, recorded });
                self.step(Event::Restored(restored));
            }
            Turn::Follow(restored) => {
                self.leading = None;
                self.rows_at = self.clock.now();
                self.step(Event::Followed(restored));
            }
            Turn::StepDown => {
                self.leading = None;
                self.step(Event::SteppedDown);
            }
        }
        self.publish();
    }

    /// When to wake up if nothing happens, and when the core wants its tick.
    fn wake(&self) -> (Option<Mono>, Option<Mono>) {
        let tick = self.fleet.deadline().map(|at| at.max(self.ticked_at + TICK_INTERVAL_MIN));
        (tick.into_iter().chain([self.gallery.due()]).min(), tick)
    }

    fn drain(&mut self) {
        self.counts.events_waiting_max.fetch_max(self.inlets.events.len(), Ordering::Relaxed);
        for _ in 0..BATCH_MAX {
            let recorded = self.leading.as_mut().and_then(|leading| leading.recorded.try_recv().ok());
            if let Some(operation) = recorded {
                self.step(Event::Recorded { operation });
            } else if let Ok(event) = self.inlets.events.try_recv() {
                self.step(event);
            } else {
                return;
            }
        }
    }

    /// The barrier comes after all writes of the step, so its answer says that they are stored. A standby takes no wishes:
    /// whoever asked learns that nothing was stored.
    fn obey(&mut self, ask: Ask) {
        if self.leading.is_none() {
            return;
        }
        self.step(ask.event);
        self.publish();
        let Some(leading) = &self.leading else { return };
        if !leading.store.push(Write::Barrier(ask.stored)) {
            warn!("store queue is full; an operator's change is not confirmed");
        }
    }

    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.clock.now();
            if let Some(recorder) = &mut self.recorder {
                recorder.write(now, &event);
            }
            let is_beats = matches!(event, Event::Heartbeats(_));
            let mut actions = std::mem::take(&mut self.actions);
            self.fleet.step(now, event, &mut actions);
            self.count(now, actions.len());
            if is_beats {
                self.shells.network.beats_taken();
            }
            events.extend(actions.drain(..).filter_map(|action| self.perform(action)));
            self.actions = actions;
        }
    }

    /// Hands an action to its shell. An event returned is the shell's answer, there and then.
    fn perform(&mut self, action: Action) -> Option<Event> {
        let Some(Leading { store, .. }) = &self.leading else { return self.observe(action) };
        let write = match action {
            Action::Record(operation) => {
                self.unrecorded.push_back(operation);
                self.record();
                return None;
            }
            Action::Close(operation) => Write::Operation { operation, is_new: false },
            Action::SaveNode(record) => Write::SaveNode(record),
            Action::ForgetNode(node) => {
                self.shells.network.perform(Action::ForgetNode(node.clone()));
                Write::ForgetNode(node)
            }
            Action::SaveDeployment(deployment) => Write::SaveDeployment(deployment),
            Action::SaveSync(record) => Write::SaveSync(record),
            Action::Launch { operation, .. } | Action::Terminate { operation, .. } if !self.may_act() => {
                let fault = CloudFault::NoAnswer("this controller's lease may be over".to_owned());
                return Some(Event::Performed { operation, result: Err(fault) });
            }
            // Sent again by the core while it is not answered.
            Action::Send { message: Message::Command { .. }, .. } | Action::CommandByPoll { .. }
                if !self.may_act() =>
            {
                return None;
            }
            Action::RestartBySsh { node, operation, .. } if !self.may_act() => {
                let result = Err("this controller's lease may be over".to_owned());
                return Some(Event::RestartedBySsh { node, operation, result });
            }
            Action::Launch { operation, provider, node, deployment, zone, price_limit } => {
                let order = LaunchOrder { operation, node, deployment, zone, price_limit };
                return self.shells.provision.launch(&provider, order);
            }
            Action::Terminate { operation, provider, node } => {
                return self.shells.provision.terminate(operation, &provider, node);
            }
            Action::ListInstances { provider } => return self.shells.provision.list(provider),
            Action::Explain { node, address } => return self.shells.reach.explain(node, &address),
            Action::CommandByPoll { node, address, operation, term, command } => {
                return self.shells.reach.command(node, address, Order { operation, term, command });
            }
            Action::RestartBySsh { node, address, operation } => {
                let (leadership, clock) = (self.shells.leadership.clone(), self.clock);
                let term = self.leading.as_ref().map(|leading| leading.term);
                let may_act = move || term.is_some() && leadership.may_act(clock.now()) == term;
                return self.shells.reach.restart(node, &address, operation, may_act);
            }
            Action::Poll { .. } | Action::Send { .. } | Action::PublishRoutes(_) => {
                self.shells.network.perform(action);
                return None;
            }
            Action::Note(record) => {
                log(&record);
                store.push_event(record);
                return None;
            }
        };
        if !store.push(write) {
            error!("store queue is full; a write is refused");
        }
        None
    }

    /// What a standby does of it. The core asks for nothing else then.
    fn observe(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::ListInstances { provider } => return self.shells.provision.list(provider),
            action if action.is_of_a_standby() => self.shells.network.perform(action),
            action => debug!(?action, "not performed: this controller follows"),
        }
        None
    }

    /// Whether the lease that it decides under holds for certain, now. A pause between this look and the act is what the
    /// operation's id is for. Routes and assignments need no look: every node refuses those of an older term.
    fn may_act(&self) -> bool {
        let trusted = self.shells.leadership.may_act(self.clock.now());
        trusted.is_some() && trusted == self.leading.as_ref().map(|leading| leading.term)
    }

    /// Hands operations to the store, in order, as far as it takes them. The core waits for each; a node has one open
    /// operation at most, which bounds those that wait here.
    fn record(&mut self) {
        let Some(Leading { store, .. }) = &self.leading else { return };
        while let Some(operation) = self.unrecorded.front() {
            if !store.push(Write::Operation { operation: operation.clone(), is_new: true }) {
                warn!(waiting = self.unrecorded.len(), "store queue is full; operations wait to be recorded");
                return;
            }
            self.unrecorded.pop_front();
        }
    }

    fn publish(&mut self) {
        let now = self.clock.now();
        let view = self.fleet.view(now);
        let leads = self.leading.as_ref().map(|leading| leading.term);
        let rows_at = if leads.is_some() { now } else { self.rows_at };
        let now_unix_ms = self.clock.unix_ms();
        self.gallery.show(Published { view, now_unix_ms, leads, rows_at }, now, self.clock.now());
    }

    fn count(&self, began_at: Mono, action_count: usize) {
        let span = self.clock.now().since(began_at);
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.counts.steps.fetch_add(1, Ordering::Relaxed);
        self.counts.actions.fetch_add(action_count as u64, Ordering::Relaxed);
        self.counts.spans.add(span);
        self.counts.nanos_max.fetch_max(nanos, Ordering::Relaxed);
    }
}

/// `None` when the term's writer has ended; the keeper will say what that means.
async fn recorded(leading: &mut Option<Leading>) -> Option<OperationId> {
    match leading {
        Some(leading) => leading.recorded.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(clock: &Clock, at: Option<Mono>) {
    match at {
        Some(at) => tokio::time::sleep_until(clock.instant(at).into()).await,
        None => std::future::pending().await,
    }
}

fn log(record: &EventRecord) {
    let EventRecord { node, severity, kind, text } = record;
    let node = node.as_ref().map_or("-", |node| node.as_str());
    match severity {
        Severity::Info => info!(node, kind, text, "fleet"),
        Severity::Warning => warn!(node, kind, text, "fleet"),
        Severity::Alert => error!(node, kind, text, "fleet"),
    }
}
