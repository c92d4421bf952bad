//! Joins the shells to the core: one task that owns the agent and waits for nothing but the next event.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use cic_common::assignment::Assignment;
use cic_common::id::{NodeId, OperationId};
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::{Clock, Mono};
use cic_common::wire::message::{CommandOutcome, NodeEvent};
use cic_common::wire::order::Order;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::core::gpu::GpuEvent;
use crate::core::{
    Action, Agent, DeadmanMemo, Depth, EdgeMode, Event, GpuMemo, Occasion, ProbeFault, Reading, Timing,
};
use crate::effect::checkpoint::{Answers, Checkpoints, Successor};
use crate::effect::engine::{Checker, Keeper, crashes};
use crate::effect::link::{LinkEvent, Links, Pulse};
use crate::effect::memory::Memory;
use crate::effect::{model::Desk, power};
use crate::serve::edge::{Edge, OwnEngine, Routes};
use crate::serve::gpu_metrics::{GpuBoard, GpuFigures};
use crate::serve::metrics::MetricsPort;
use crate::serve::order::Ordered;
use crate::source::engine::{Asked, probe};
use crate::source::gpu::GpuRequests;
use crate::source::spot::SpotWords;
use crate::state::{StateDir, name};

/// Events that wait for the core. A step takes microseconds; full means that the senders wait.
pub const EVENTS_WAITING_MAX: usize = 1024;

/// Words of the edge for the controllers that wait for the driver. It speaks of a model once in 5 s; one that finds no
/// room is said again.
pub const EDGE_WORDS_WAITING_MAX: usize = 16;

/// A check asks the engine for its help, which may take two minutes, and looks at files.
const CHECK_WITHIN: Duration = Duration::from_secs(180);

/// Between two looks at whether answers are under way still.
const LOOK: Duration = Duration::from_millis(20);

/// Time for answers under way. The links have their own for the last words.
const LAST_WORDS: Duration = Duration::from_millis(600);

/// Time for a checkpoint under way: of the least reserve, 1.5 s, what the farewell does not need.
const LAST_CHECKPOINT: Duration = Duration::from_secs(1);

/// What the driver hands actions to.
#[derive(Debug)]
pub struct Shells {
    pub keeper: Keeper,
    pub checker: Checker,
    pub files: Desk,
    pub gpu_memory: Memory<GpuMemo>,
    pub deadman_memory: Memory<DeadmanMemo>,
    /// Program and arguments that end this machine.
    pub power_off: Vec<String>,
    /// How long until it is run if nobody speaks; `None` where it is not.
    pub power_off_in: watch::Sender<Option<Duration>>,
    pub gpus: GpuRequests,
    pub spot: SpotWords,
    pub board: GpuBoard,
    pub edge: Edge,
    pub routes: Routes,
    pub links: Option<Links>,
    pub pulse: Arc<Pulse>,
    pub state: StateDir,
    /// `None` where none is configured.
    pub store: Option<Store>,
    pub tasks: Supervisor,
    pub events: mpsc::Sender<Event>,
    pub timing: Timing,
    pub clock: Clock,
    /// Every event with its moment, one JSON object a line.
    pub record: Option<File>,
}

/// Where checkpoints go, and what is needed for them.
#[derive(Debug, Clone)]
pub struct Store {
    pub checkpoints: Checkpoints,
    pub answers: Answers,
    pub page: MetricsPort,
}

/// Owns the agent's core.
#[derive(Debug)]
pub struct Driver {
    agent: Agent,
    shells: Shells,
    mode: EdgeMode,
    own: Option<OwnEngine>,
    /// Those whose checkpoints are read, and whether they are gone.
    predecessors: BTreeMap<NodeId, watch::Sender<bool>>,
    /// Requests that the edge had seen at the last look.
    served_count: u64,
    /// Something that the next run must find is being written.
    last_note: Option<oneshot::Receiver<()>>,
    out: Vec<Action>,
}

#[derive(Serialize)]
struct Heard<'a> {
    now: Mono,
    event: &'a Event,
}

impl Driver {
    #[must_use]
    pub fn new(agent: Agent, shells: Shells) -> Self {
        let mode = EdgeMode::Refuse { reason: "agent is starting".to_owned() };
        Self {
            agent,
            shells,
            mode,
            own: None,
            predecessors: BTreeMap::new(),
            served_count: 0,
            last_note: None,
            out: Vec::new(),
        }
    }

    /// Runs until the core says exit, which is the code returned, or `token` is cancelled.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut link_events: mpsc::Receiver<LinkEvent>,
        mut edge_words: mpsc::Receiver<NodeEvent>,
        mut orders: mpsc::Receiver<Ordered>,
        token: CancellationToken,
    ) -> u8 {
        let mut running = self.shells.keeper.running();
        loop {
            let now = self.shells.clock.now();
            let due = self.agent.deadline().map(|at| at.max(now + Duration::from_millis(1)));
            let due = due.map(|at| self.shells.clock.instant(at).into());
            // Cancel safe: queues keep what is not taken, a sleep that is dropped is computed anew.
            let mut asker = None;
            let event = tokio::select! {
                () = token.cancelled() => return 0,
                Some(event) = events.recv() => event,
                Some(event) = link_events.recv() => match event {
                    LinkEvent::Core(event) => event,
                    LinkEvent::Routes(table) => {
                        self.shells.routes.offer(table);
                        continue;
                    }
                    LinkEvent::Up { address, controller, term } => {
                        info!(%address, %controller, %term, "controller welcomes this node");
                        continue;
                    }
                    LinkEvent::Down { address, reason } => {
                        info!(%address, reason, "controller link down");
                        continue;
                    }
                },
                Some(Ordered { order: Order { operation, term, command }, answer }) = orders.recv() => {
                    asker = Some((operation, answer));
                    Event::Commanded { operation, term, command }
                }
                Some(word) = edge_words.recv() => {
                    self.tell(&word);
                    continue;
                }
                Ok(()) = running.changed() => {
                    self.refresh_own();
                    continue;
                }
                () = wait(due) => Event::Tick,
            };
            if matches!(event, Event::Tick | Event::HostSampled(_)) {
                self.contact();
            }
            if event == Event::Tick {
                let edge = &self.shells.edge;
                let (counted, in_flight) = (Event::EdgeCounted(edge.report()), edge.own_in_flight());
                self.step(counted);
                self.step(Event::EngineOccupied { in_flight });
            }
            self.step(event);
            if let Some((operation, answer)) = asker {
                self.answer(operation, answer);
            }
            if let Some(code) = self.perform() {
                // Cancel safe: only waits.
                tokio::select! {
                    () = token.cancelled() => {}
                    () = self.finished() => {}
                }
                return code;
            }
        }
    }

    /// Tells the core whether a controller spoke or a request came since the last time.
    fn contact(&mut self) {
        let Shells { edge, links, pulse, .. } = &self.shells;
        let served_count = edge.served_count();
        let has_served = std::mem::replace(&mut self.served_count, served_count) != served_count;
        let is_linked = links.as_ref().is_some_and(|links| links.live_count() > 0);
        let by_controller = pulse.take_polled() || is_linked;
        if by_controller || has_served {
            self.step(Event::Contact { by_controller });
        }
        self.shells.power_off_in.send_replace(self.agent.power_off_in());
    }

    /// Says what the core just made of a command. One who does not wait any more asks again.
    fn answer(&self, operation: OperationId, answer: oneshot::Sender<CommandOutcome>) {
        let outcome = self.out.iter().find_map(|action| match action {
            Action::Tell(NodeEvent::CommandDone { operation: of, outcome }) if *of == operation => {
                Some(outcome.clone())
            }
            _ => None,
        });
        if let Some(outcome) = outcome {
            let _ = answer.send(outcome);
        }
    }

    /// Resolves when no answer, no checkpoint and no last note is under way, or has had its time.
    async fn finished(&mut self) {
        let noted = self.last_note.take();
        let noted = async {
            if let Some(noted) = noted {
                // Gone without a word: the task that wrote it has logged why.
                let _ = noted.await;
            }
        };
        let written = async {
            if let Some(store) = &self.shells.store {
                store.checkpoints.written().await;
            }
        };
        let _ = tokio::join!(
            tokio::time::timeout(LAST_WORDS, self.answered()),
            tokio::time::timeout(LAST_CHECKPOINT, written),
            tokio::time::timeout(LAST_CHECKPOINT, noted),
        );
    }

    /// Resolves when no answer is under way.
    async fn answered(&self) {
        while self.shells.edge.report().in_flight > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn step(&mut self, event: Event) {
        let now = self.shells.clock.now();
        if let Some(file) = &mut self.shells.record {
            let line = serde_json::to_string(&Heard { now, event: &event }).unwrap_or_default();
            if let Err(error) = writeln!(file, "{line}") {
                warn!(%error, "record ends");
                self.shells.record = None;
            }
        }
        let has_samples = matches!(event, Event::Gpu(GpuEvent::Sampled { .. } | GpuEvent::Ready(_)));
        self.agent.step(now, event, &mut self.out);
        if has_samples {
            let (inventory, samples) = self.agent.gpu_figures();
            self.shells.board.set(GpuFigures { inventory, samples });
        }
    }

    /// Hands every action to its shell without waiting for it. Returns the code if the program is to end.
    fn perform(&mut self) -> Option<u8> {
        let mut exit = None;
        let actions = std::mem::take(&mut self.out);
        // The report first: an event told after it must not overtake the phase it speaks of.
        if actions.contains(&Action::Heartbeat) {
            self.shells.pulse.set(self.agent.report(self.shells.clock.now()));
        }
        for action in actions {
            match action {
                Action::Heartbeat => {}
                Action::Tell(event) => self.tell(&event),
                Action::Remember { term, assignment } => {
                    let state = self.shells.state.clone();
                    self.spawn("remember", async move {
                        Ok(state.write(name::ASSIGNMENT, &(term, assignment)).await?)
                    });
                }
                Action::RememberRestart { term, operation } => {
                    let state = self.shells.state.clone();
                    let (done, noted) = oneshot::channel();
                    self.last_note = Some(noted);
                    self.spawn("remember restart", async move {
                        state.write(name::RESTART, &(term, operation)).await?;
                        let _ = done.send(());
                        Ok(())
                    });
                }
                Action::MountModel { attempt, model } => self.shells.files.mount(attempt, model),
                Action::VerifyModel { attempt, model } => self.shells.files.verify(attempt, model),
                Action::FetchModel { attempt, url, model } => self.shells.files.fetch(attempt, url, model),
                Action::AttachModel { attempt, url, model } => self.shells.files.attach(attempt, url, model),
                Action::WarmModel { model } => self.shells.files.warm(model),
                Action::LeaveModel => self.shells.files.leave(),
                Action::CheckEngine { attempt, assignment, gpus } => {
                    let (events, checker) = (self.shells.events.clone(), self.shells.checker.clone());
                    self.spawn("engine check", async move {
                        // What cannot be found out in time is no reason not to start.
                        let check = tokio::time::timeout(CHECK_WITHIN, checker.check(&assignment, &gpus));
                        let result = check.await.unwrap_or(Ok(()));
                        Ok(events.send(Event::EngineChecked { attempt, result }).await?)
                    });
                }
                Action::StartEngine { attempt, assignment, directory } => {
                    self.shells.keeper.start(attempt, assignment, directory);
                }
                Action::StopEngine { pid, grace_ms, autopsy } => {
                    self.shells.keeper.stop(pid, Duration::from_millis(grace_ms), autopsy);
                }
                Action::ProbeEngine { pid, model, depth } => self.probe(pid, model, depth),
                Action::LookAtEngine { pid } => {
                    let (events, keeper) = (self.shells.events.clone(), self.shells.keeper.clone());
                    self.spawn("engine look", async move {
                        let Some(activity) = keeper.activity(pid).await else { return Ok(()) };
                        Ok(events.send(Event::EngineSeen { pid, activity }).await?)
                    });
                }
                Action::SaveCrash(record) => {
                    let state = self.shells.state.clone();
                    self.spawn("crash record", async move {
                        let path = crashes::save(&state, &record).await?;
                        info!(path = %path.display(), cause = %record.cause, "crash record written");
                        Ok(())
                    });
                }
                Action::SampleGpus => self.shells.gpus.sample_now(),
                Action::RememberGpus(memo) => self.shells.gpu_memory.remember(memo),
                Action::RememberDeadman(memo) => self.shells.deadman_memory.remember(memo),
                Action::PowerOff { reason } => {
                    warn!(reason, command = ?self.shells.power_off, "power off");
                    let command = self.shells.power_off.clone();
                    self.spawn("power off", async move { Ok(power::off(&command).await?) });
                }
                Action::SetEdge(mode) => {
                    info!(?mode, "edge");
                    self.mode = mode;
                    self.refresh_own();
                }
                Action::HandOver => {
                    info!("hand streams over");
                    self.shells.edge.hand_over();
                }
                Action::NameModel { attempt, model } => self.shells.files.name(attempt, model),
                Action::Checkpoint { occasion, assignment, model_digest } => {
                    self.checkpoint(occasion, assignment, model_digest);
                }
                Action::Restore { from, is_gone } => self.restore(from, is_gone),
                Action::AcknowledgeNotice { source, id } => self.shells.spot.acknowledge(&source, &id),
                Action::Exit { code, reason } => {
                    info!(code, reason, "exit");
                    exit = Some(code);
                }
                Action::Warn { what, why } => warn!(what, why, "warning"),
                Action::Decided { what, why } => info!(what, why, "decided"),
            }
        }
        exit
    }

    fn checkpoint(&self, occasion: Occasion, assignment: Option<Assignment>, model_digest: Option<String>) {
        let Some(Store { checkpoints, page, .. }) = &self.shells.store else { return };
        // Now: what is under way will have ended when the task runs.
        let under_way = self.shells.edge.under_way();
        let what = (assignment, model_digest);
        let snapshot = checkpoints.look(occasion, what, page.text(), || under_way.written());
        let (checkpoints, events) = (checkpoints.clone(), self.shells.events.clone());
        self.spawn("checkpoint", async move {
            let result = checkpoints.save(snapshot).await;
            info!(?result, "checkpoint");
            events.send(Event::Checkpointed { occasion, result }).await?;
            // A node that is being taken has better things to do.
            if occasion == Occasion::Periodic {
                checkpoints.prune().await;
            }
            Ok(())
        });
    }

    fn restore(&mut self, from: NodeId, is_gone: bool) {
        let Some(Store { checkpoints, answers, .. }) = &self.shells.store else { return };
        let (checkpoints, answers) = (checkpoints.clone(), answers.clone());
        self.predecessors.retain(|_, running| !running.is_closed());
        if let Some(running) = self.predecessors.get(&from) {
            running.send_replace(is_gone);
            return;
        }
        let gone = watch::Sender::new(is_gone);
        let Shells { edge, events, clock, .. } = &self.shells;
        let (edge, events, is_gone) = (edge.clone(), events.clone(), gone.subscribe());
        self.predecessors.insert(from.clone(), gone);
        let successor = Successor { checkpoints, edge, answers, events, clock: *clock, is_gone };
        self.spawn("restore", async move { Ok(successor.succeed(from).await?) });
    }

    fn tell(&self, event: &NodeEvent) {
        info!(?event, "tell the controllers");
        if let Some(links) = &self.shells.links {
            links.tell(event);
        }
    }

    fn probe(&self, pid: u32, model: String, depth: Depth) {
        let port = self.shells.keeper.running().borrow().as_ref().filter(|r| r.pid == pid).map(|r| r.port);
        let (events, timing) = (self.shells.events.clone(), self.shells.timing);
        let edge = self.shells.edge.clone();
        self.spawn("engine probe", async move {
            let (reading, result) = match port {
                Some(port) => {
                    let (deadline, canary_deadline) = (timing.probe_deadline, timing.stall_kill);
                    probe(&Asked { port, model, deadline, canary_deadline }, depth).await
                }
                None => (Reading::default(), Err(ProbeFault::Health("the engine is not running".to_owned()))),
            };
            // An engine that tells nothing holds nobody back.
            let waiting = reading.after.map_or(0, |work| work.waiting);
            edge.engine_queues(u32::try_from(waiting).unwrap_or(u32::MAX));
            Ok(events.send(Event::EngineProbed { pid, reading, result }).await?)
        });
    }

    fn spawn(&self, name: &'static str, work: impl Future<Output = TaskResult> + Send + 'static) {
        self.shells.tasks.spawn(name, Kind::Passing, |token| async move {
            // Cancel safe: the program ends, and what was asked for is asked again by the next run.
            tokio::select! {
                () = token.cancelled() => Ok(()),
                result = work => result,
            }
        });
    }

    fn refresh_own(&mut self) {
        let running = self.shells.keeper.running();
        let own = running.borrow().as_ref().map(|record| OwnEngine {
            model: record.assignment.model.name.clone(),
            port: record.port,
            mode: self.mode.clone(),
        });
        if own != self.own {
            self.own.clone_from(&own);
            self.shells.edge.set_own(own);
        }
    }
}

async fn wait(due: Option<tokio::time::Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
