//! Joins the shells to the core: one task that owns the fleet and waits for nothing but the next event.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cic_common::id::OperationId;
use cic_common::supervise::TaskResult;
use cic_common::time::{Clock, Mono};
use cic_common::wire::order::Order;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::core::{Action, Event, EventRecord, Fleet, Operation, Restored, Severity, View};
use crate::provision::Provision;
use crate::reach::Reach;
use crate::record::Recorder;
use crate::store::{StoreQueue, Write};

/// Events that wait for the core. A step takes microseconds; full means that the senders wait.
pub const EVENTS_WAITING_MAX: usize = 4096;

/// Operators' wishes that wait.
const ASKS_WAITING_MAX: usize = 64;

/// Events taken between two looks at the clock and the view.
const BATCH_MAX: usize = 256;

/// Views are for people and scrapes: 20 a second is plenty, and a busy fleet pays for no more.
const VIEW_INTERVAL: Duration = Duration::from_millis(50);

/// A core that asks to be called in the past is called at most this often.
const TICK_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// How long an operator's wish may take until it is stored.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// The wish was not stored in time; it may still be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not stored within {ASK_WITHIN:?}")]
pub struct NotStored;

/// A view with the wall clock at its `now`, so that a reader can place its moments in the day.
#[derive(Debug, Default, Clone)]
pub struct Published {
    pub view: View,
    pub now_unix_ms: u64,
}

/// What the driver did, for `/metrics`.
#[derive(Debug, Default)]
pub struct StepCounts {
    pub steps: AtomicU64,
    pub actions: AtomicU64,
    /// Sum over all steps, without what becomes of their actions.
    pub nanos: AtomicU64,
    pub nanos_max: AtomicU64,
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
    pub store: StoreQueue,
    pub provision: Provision,
    pub network: Box<dyn Network>,
    pub reach: Reach,
}

/// The ways to the nodes, or a stand-in where there are none.
pub trait Network: Send {
    /// Performs `Send`, `PublishRoutes`, `Poll` and its part of `ForgetNode` without waiting.
    fn perform(&mut self, action: Action);
}

impl std::fmt::Debug for Shells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shells").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What flows into the driver.
#[derive(Debug)]
pub struct Inlets {
    pub events: mpsc::Receiver<Event>,
    pub recorded: mpsc::Receiver<OperationId>,
}

/// The driver.
pub struct Driver {
    fleet: Fleet,
    clock: Clock,
    inlets: Inlets,
    asks: mpsc::Receiver<Ask>,
    shells: Shells,
    recorder: Option<Recorder>,
    published: watch::Sender<Arc<Published>>,
    published_at: Mono,
    is_changed: bool,
    ticked_at: Mono,
    counts: Arc<StepCounts>,
    actions: Vec<Action>,
    /// Operations that the store's full queue did not take yet, oldest first.
    unrecorded: VecDeque<Operation>,
}

/// What the API needs of a driver.
#[derive(Debug, Clone)]
pub struct Outlets {
    pub views: watch::Receiver<Arc<Published>>,
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
        let (published, views) = watch::channel(Arc::default());
        let (ask, asks) = mpsc::channel(ASKS_WAITING_MAX);
        let counts = Arc::new(StepCounts::default());
        let outlets = Outlets { views, asking: Asking(ask), counts: Arc::clone(&counts) };
        let driver = Self {
            fleet,
            clock,
            inlets,
            asks,
            shells,
            recorder,
            published,
            published_at: Mono::ZERO,
            is_changed: false,
            ticked_at: Mono::ZERO,
            counts,
            actions: Vec::new(),
            unrecorded: VecDeque::new(),
        };
        (driver, outlets)
    }

    /// Runs the fleet from what was `restored` until `token` is cancelled. The nodes are left alone then.
    ///
    /// # Errors
    /// Never; an end before the program was told to stop is the failure.
    pub async fn run(mut self, restored: Restored, token: CancellationToken) -> TaskResult {
        self.step(Event::Restored(restored));
        self.publish();
        loop {
            let (wake, tick) = self.wake();
            // Cancel safe: receiving and sleeping lose nothing when another arm is taken. A closed queue means
            // that the program stops.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                recorded = self.inlets.recorded.recv() => match recorded {
                    Some(operation) => self.step(Event::Recorded { operation }),
                    None => return Ok(()),
                },
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.obey(ask),
                    None => return Ok(()),
                },
                event = self.inlets.events.recv() => match event {
                    Some(event) => self.step(event),
                    None => return Ok(()),
                },
                () = sleep_until(&self.clock, wake) => if tick.is_some_and(|at| at <= self.clock.now()) {
                    self.ticked_at = self.clock.now();
                    self.step(Event::Tick);
                },
            }
            self.drain();
            self.record();
            if self.is_changed && self.clock.now().since(self.published_at) >= VIEW_INTERVAL {
                self.publish();
            }
        }
    }

    /// When to wake up if nothing happens, and when the core wants its tick.
    fn wake(&self) -> (Option<Mono>, Option<Mono>) {
        let tick = self.fleet.deadline().map(|at| at.max(self.ticked_at + TICK_INTERVAL_MIN));
        let view = self.is_changed.then(|| self.published_at + VIEW_INTERVAL);
        (tick.into_iter().chain(view).min(), tick)
    }

    fn drain(&mut self) {
        for _ in 0..BATCH_MAX {
            if let Ok(operation) = self.inlets.recorded.try_recv() {
                self.step(Event::Recorded { operation });
            } else if let Ok(event) = self.inlets.events.try_recv() {
                self.step(event);
            } else {
                return;
            }
        }
    }

    /// The barrier comes after all writes of the step, so its answer says that they are stored.
    fn obey(&mut self, ask: Ask) {
        self.step(ask.event);
        self.publish();
        if !self.shells.store.push(Write::Barrier(ask.stored)) {
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
            let mut actions = std::mem::take(&mut self.actions);
            self.fleet.step(now, event, &mut actions);
            self.count(now, actions.len());
            events.extend(actions.drain(..).filter_map(|action| self.perform(action)));
            self.actions = actions;
        }
        self.is_changed = true;
    }

    /// Hands an action to its shell. An event returned is the shell's answer, there and then.
    fn perform(&mut self, action: Action) -> Option<Event> {
        let store = &self.shells.store;
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
            Action::Launch { operation, provider, node, deployment, zone } => {
                return self.shells.provision.launch(operation, &provider, node, deployment, zone);
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
                return self.shells.reach.restart(node, &address, operation);
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

    /// Hands operations to the store, in order, as far as it takes them. The core waits for each; a node has one open
    /// operation at most, which bounds those that wait here.
    fn record(&mut self) {
        while let Some(operation) = self.unrecorded.front() {
            if !self.shells.store.push(Write::Operation { operation: operation.clone(), is_new: true }) {
                warn!(waiting = self.unrecorded.len(), "store queue is full; operations wait to be recorded");
                return;
            }
            self.unrecorded.pop_front();
        }
    }

    fn publish(&mut self) {
        let now = self.clock.now();
        let view = self.fleet.view(now);
        self.published.send_replace(Arc::new(Published { view, now_unix_ms: self.clock.unix_ms() }));
        self.published_at = now;
        self.is_changed = false;
    }

    fn count(&self, began_at: Mono, action_count: usize) {
        let nanos = u64::try_from(self.clock.now().since(began_at).as_nanos()).unwrap_or(u64::MAX);
        self.counts.steps.fetch_add(1, Ordering::Relaxed);
        self.counts.actions.fetch_add(action_count as u64, Ordering::Relaxed);
        self.counts.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.counts.nanos_max.fetch_max(nanos, Ordering::Relaxed);
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
