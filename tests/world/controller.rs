//! Runs the controller's real core: its clock, its store, its calls, and the kills and stalls it must survive.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::id::Incarnation;
use cic_common::report::{EngineState, Heartbeat, NodeReport, Phase};
use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use cic_common::wire::message::Command;
use cic_common::wire::message::NodeEvent;
use cic_controller::core::{Action, CloudFault, Event, Fleet, InstanceState, Message, View};

use super::agent_host::TICKS_AT_ONCE_MAX;
use super::clock::Origin;
use super::fact::Fact;
use super::happening::{CloudAct, Happening};
use super::session::Packet;
use super::store::{WRITES_MAX, Write};
use super::world::World;

/// One group commit of the store.
const COMMIT_MS: (u64, u64) = (1, 20);

/// Actions that one step may give: a fixed part, and some for each node it may conclude about, or launch.
const ACTIONS_BASE_MAX: usize = 64;
const ACTIONS_PER_NODE_MAX: usize = 16;

/// Kinds of alarm that no world without a broken program raises.
const DISCORDS: [&str; 2] = ["digest-mismatch", "paths-disagree"];

/// A moment at which the controller is killed, in the middle of a step's actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    BeforeRecord,
    AfterRecord,
    BeforeLaunch,
    AfterLaunch,
    BeforeTerminate,
    AfterTerminate,
    BeforeClose,
}

/// The controller is killed at one step of whatever it does about operations.
#[derive(Debug, Clone, Copy)]
pub struct Kill {
    /// Counted from 1, over all its runs.
    pub at_step: u64,
    pub down_for: Duration,
    /// The store then lacks the row of the youngest VM.
    pub loses_row: bool,
}

/// Steps that were passed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Steps {
    pub passed: u64,
    pub killed_at: Option<&'static str>,
}

/// The steps before and after an action that is part of an operation, or of the rows around it.
fn steps_of(action: &Action) -> Option<(&'static str, &'static str)> {
    match action {
        Action::Record(_) => Some(("before a record is asked for", "after a record is asked for")),
        Action::Close(_) => Some(("before a close is asked for", "after a close is asked for")),
        Action::SaveNode(_) => Some(("before a row is saved", "after a row is saved")),
        Action::ForgetNode(_) => Some(("before a row is deleted", "after a row is deleted")),
        Action::SaveDeployment(_) => Some(("before a deployment is saved", "after a deployment is saved")),
        Action::Launch { .. } => Some(("before a launch is sent", "after a launch is sent")),
        Action::Terminate { .. } => Some(("before a termination is sent", "after a termination is sent")),
        Action::Send { message: Message::Command { .. }, .. } => {
            Some(("before a command is sent", "after a command is sent"))
        }
        Action::CommandByPoll { .. } => Some(("before an order is sent", "after an order is sent")),
        Action::RestartBySsh { .. } => Some(("before a restart over ssh", "after a restart over ssh")),
        Action::ListInstances { .. }
        | Action::Explain { .. }
        | Action::SaveSync(_)
        | Action::Poll { .. }
        | Action::Send { .. }
        | Action::PublishRoutes(_)
        | Action::Note(_) => None,
    }
}

/// The controller's process and what its shells keep.
#[derive(Debug, Default)]
pub struct Controller {
    process: Option<Process>,
    pub(super) run: u32,
    pub(super) is_frozen: bool,
    /// What came while it was stopped by a signal.
    pub(super) pile: Vec<Happening>,
    pub(super) sessions: BTreeMap<usize, usize>,
    /// The newest reliable event of each node, so that each is told once.
    pub(super) told: BTreeMap<usize, (Incarnation, u64)>,
    /// The newest heartbeat of each node since the last batch.
    pub(super) mailbox: BTreeMap<usize, Heartbeat>,
    pub(super) is_batch_due: bool,
    is_commit_due: bool,
    /// Highest incarnation of each node that this run knows.
    pub(super) newest: BTreeMap<usize, (Incarnation, u64)>,
    pub(super) armed: Option<(CrashPoint, Duration)>,
    /// What it published last.
    pub(super) routes: Option<RoutingTable>,
}

#[derive(Debug)]
struct Process {
    fleet: Fleet,
    origin: Origin,
    wake: Option<Mono>,
    ticks_at: (Mono, u32),
}

impl Controller {
    /// Whether this run is the current one and alive, if perhaps stopped by a signal.
    #[must_use]
    pub fn is_running(&self, run: u32) -> bool {
        self.process.is_some() && self.run == run
    }

    /// Whether it would answer a handshake.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.process.is_some() && !self.is_frozen
    }

    /// What people would be shown.
    #[must_use]
    pub fn view(&self, world_now: Mono) -> Option<View> {
        self.process.as_ref().map(|process| process.fleet.view(process.origin.local(world_now)))
    }
}

impl World {
    pub(super) fn controller_starts(&mut self) {
        let now = self.now();
        if self.controller.process.is_some() {
            return;
        }
        if self.store.back_at() > now {
            self.queue.push(self.store.back_at(), Happening::ControllerStarts);
            return;
        }
        let restored = self.store.restore();
        let open = restored.operations.iter().map(|operation| operation.id).collect();
        self.facts.push(Fact::ControllerStarted { term: restored.term, open });
        let newest = restored
            .nodes
            .iter()
            .filter_map(|record| Some((self.index(&record.node)?, (record.incarnation, 0))))
            .collect();
        let fleet = Fleet::new(self.setup.timing, self.setup.rules);
        let process = Process { fleet, origin: Origin::at(now), wake: None, ticks_at: (now, 0) };
        let run = self.controller.run + 1;
        let armed = self.controller.armed.take();
        self.controller = Controller { process: Some(process), run, newest, armed, ..Default::default() };
        self.fleet_step(Event::Restored(restored));
        self.later(Duration::from_secs(1), Happening::OperatorLooks);
    }

    pub(super) fn controller_wakes(&mut self, run: u32, at: Mono) {
        let now = self.now();
        if !self.controller.is_running(run) {
            return;
        }
        let is_frozen = self.controller.is_frozen;
        let Some(process) = self.controller.process.as_mut().filter(|process| process.wake == Some(at))
        else {
            return;
        };
        process.wake = None;
        if is_frozen {
            return;
        }
        if process.fleet.deadline().is_some_and(|due| process.origin.world(due) <= now) {
            process.ticks_at =
                if process.ticks_at.0 == now { (now, process.ticks_at.1 + 1) } else { (now, 0) };
            let count = process.ticks_at.1;
            if count > TICKS_AT_ONCE_MAX {
                let max = TICKS_AT_ONCE_MAX as usize;
                let what = "ticks of the controller without time passing";
                self.facts.push(Fact::Overfull { what, count: count as usize, max });
                return;
            }
            self.fleet_step(Event::Tick);
        } else {
            self.wake_controller();
        }
    }

    /// One step of the core, and what it asks for.
    pub(super) fn fleet_step(&mut self, event: Event) {
        let mut out = std::mem::take(&mut self.fleet_out);
        self.fleet_hears(event, &mut out);
        let wanted: usize = self.wanted().values().map(|wanted| usize::from(wanted.replicas)).sum();
        let max = ACTIONS_BASE_MAX + ACTIONS_PER_NODE_MAX * self.machines.len().max(wanted);
        if out.len() > max {
            self.facts.push(Fact::Overfull { what: "actions of one controller step", count: out.len(), max });
        }
        let run = self.controller.run;
        for action in out.drain(..) {
            if self.controller.is_running(run) {
                self.fleet_does(action);
            }
        }
        self.fleet_out = out;
        self.wake_controller();
    }

    /// Steps the core without performing anything.
    pub(super) fn fleet_hears(&mut self, event: Event, out: &mut Vec<Action>) {
        let now = self.now();
        self.note_heard(&event);
        let Some(process) = self.controller.process.as_mut() else { return };
        if !matches!(event, Event::Tick | Event::Heartbeats(_)) {
            self.trace.line(now, || format!("controller <- {event:?}"));
        }
        process.fleet.step(process.origin.local(now), event, out);
    }

    fn wake_controller(&mut self) {
        let now = self.now();
        let run = self.controller.run;
        let Some(process) = self.controller.process.as_mut() else { return };
        let Some(at) = process.fleet.deadline().map(|due| process.origin.world(due).max(now)) else { return };
        if process.wake.is_none_or(|wake| at < wake) {
            process.wake = Some(at);
            self.queue.push(at, Happening::ControllerWakes { run, at });
        }
    }

    /// Writes down whose words reached the controller, whatever the core makes of them.
    fn note_heard(&mut self, event: &Event) {
        match event {
            Event::Connected(hello) => self.heard(&hello.node, false, (hello.incarnation, 0), &hello.report),
            Event::Heartbeats(batch) => {
                for heartbeat in batch {
                    let order = (heartbeat.incarnation, heartbeat.seq);
                    self.heard(&heartbeat.node, false, order, &heartbeat.report);
                }
            }
            Event::Polled(polled) => {
                if let Ok(heartbeat) = &polled.result {
                    let order = (heartbeat.incarnation, heartbeat.seq);
                    self.heard(&heartbeat.node, true, order, &heartbeat.report);
                }
            }
            Event::Told { node, event, .. } => {
                if let NodeEvent::ReplicasMissing { model } = event {
                    self.facts.push(Fact::EdgeCried { model: model.clone() });
                    return;
                }
                let Some(node) = self.index(node) else { return };
                let has_notice =
                    matches!(event, NodeEvent::NoticeSeen { notice } if notice.kind.takes_the_node());
                let wants_replacement = matches!(event, NodeEvent::ReplacementWanted { .. });
                self.facts.push(Fact::Warned { node, has_notice, wants_replacement });
            }
            Event::Performed {
                operation,
                result: Err(CloudFault::NoCapacity(_) | CloudFault::Refused(_)),
            } => self.facts.push(Fact::Refused { operation: *operation }),
            Event::Recorded { operation } => self.facts.push(Fact::Recorded { operation: *operation }),
            Event::Listed { result: Ok(instances), .. } => {
                let is_listed = |node: &cic_common::id::NodeId| {
                    instances.iter().any(|it| it.node == *node && it.state == InstanceState::Running)
                };
                let unlisted = self.machines.iter().enumerate().filter(|(_, it)| !is_listed(&it.node));
                let nodes = unlisted.map(|(node, _)| node).collect();
                self.facts.push(Fact::Unlisted { nodes });
            }
            _ => {}
        }
    }

    fn heard(
        &mut self,
        node: &cic_common::id::NodeId,
        is_poll: bool,
        order: (Incarnation, u64),
        report: &NodeReport,
    ) {
        let Some(node) = self.index(node) else { return };
        let newest = self.controller.newest.entry(node).or_insert(order);
        if order.0 < newest.0 {
            return;
        }
        // A Hello carries no sequence: it is the newest of its time.
        let is_newest = order.1 == 0 || order >= *newest;
        *newest = order.max(*newest);
        self.facts.push(Fact::Heard {
            node,
            is_poll,
            is_newest,
            phase: report.phase,
            is_stalled: report.phase == Phase::Serving && report.engine.state == EngineState::Stalled,
            has_notice: report.notice.as_ref().is_some_and(|notice| notice.kind.takes_the_node()),
            wants_replacement: report.wants_replacement.is_some(),
        });
    }

    fn fleet_does(&mut self, action: Action) {
        let now = self.now();
        if !matches!(action, Action::Poll { .. }) {
            self.trace.line(now, || format!("controller -> {action:?}"));
        }
        let (before, after) = match &action {
            Action::Record(_) => (Some(CrashPoint::BeforeRecord), Some(CrashPoint::AfterRecord)),
            Action::Launch { .. } => (Some(CrashPoint::BeforeLaunch), Some(CrashPoint::AfterLaunch)),
            Action::Terminate { .. } => (Some(CrashPoint::BeforeTerminate), Some(CrashPoint::AfterTerminate)),
            Action::Close(_) => (Some(CrashPoint::BeforeClose), None),
            _ => (None, None),
        };
        let run = self.controller.run;
        let (step_before, step_after) = steps_of(&action).unzip();
        if self.crash_if_armed(before) || step_before.is_some_and(|step| self.passes(run, step)) {
            return;
        }
        self.perform(action);
        if !self.crash_if_armed(after)
            && let Some(step) = step_after
        {
            self.passes(run, step);
        }
    }

    /// The controller of this run gets past one step of an operation, and is killed there if this is the step. True if so.
    pub(super) fn passes(&mut self, run: u32, step: &'static str) -> bool {
        if !self.controller.is_running(run) {
            return false;
        }
        self.steps.passed += 1;
        let Some(kill) = self.setup.kill.filter(|kill| kill.at_step == self.steps.passed) else {
            return false;
        };
        self.steps.killed_at = Some(step);
        self.controller_dies(kill.down_for);
        if kill.loses_row
            && let Some(node) = self.cloud.alive().last().map(|vm| vm.node.clone())
        {
            self.store.lose(&node);
        }
        true
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Record(operation) => {
                self.facts.push(Fact::Intended(operation.clone()));
                self.write(Write::Record(operation));
            }
            Action::Close(operation) => {
                self.facts.push(Fact::Closed { operation: operation.id });
                self.write(Write::Close(operation));
            }
            Action::SaveNode(record) => self.write(Write::SaveNode(record)),
            Action::ForgetNode(node) => self.write(Write::ForgetNode(node)),
            Action::SaveDeployment(deployment) => self.write(Write::SaveDeployment(deployment)),
            // For people alone: no controller reads it again.
            Action::SaveSync(_) => {}
            Action::Launch { operation, node, deployment, zone, provider: _, price_limit: _ } => {
                let (fact_node, fact_deployment) = (node.clone(), deployment.clone());
                self.facts.push(Fact::Launch { operation, node: fact_node, deployment: fact_deployment });
                self.call_cloud(CloudAct::Launch { operation, node, deployment, zone });
            }
            Action::Terminate { operation, node, provider: _ } => {
                self.facts.push(Fact::Terminate { operation, node: node.clone() });
                self.call_cloud(CloudAct::Terminate { operation, node });
            }
            Action::ListInstances { provider } => self.call_cloud(CloudAct::List { provider }),
            Action::Poll { node, address: _, urgent, within } => self.poll(&node, urgent, within),
            Action::CommandByPoll { node, address: _, operation, term, command } => {
                self.order(&node, operation, term, command);
            }
            Action::Explain { node, address: _ } => self.explain(&node),
            Action::RestartBySsh { node, address: _, operation } => self.restart_by_ssh(&node, operation),
            Action::Send { node, message } => {
                if let Message::Command { operation, command, .. } = &message {
                    let is_drain = matches!(command, Command::Drain { .. });
                    let (operation, node) = (*operation, node.clone());
                    self.facts.push(Fact::Commanded { operation, node, is_drain });
                }
                let routes =
                    matches!(message, Message::Welcome { .. }).then(|| self.controller.routes.clone());
                if let Some(node) = self.index(&node) {
                    self.send_down(node, Packet::Message(message));
                    if let Some(routes) = routes.flatten() {
                        self.send_down(node, Packet::Routes(routes));
                    }
                }
            }
            Action::PublishRoutes(table) => {
                let nodes: Vec<usize> = self.controller.sessions.keys().copied().collect();
                for node in nodes {
                    self.send_down(node, Packet::Routes(table.clone()));
                }
                self.controller.routes = Some(table.clone());
                self.facts.push(Fact::Routes(table));
            }
            Action::Note(note) if DISCORDS.contains(&note.kind.as_str()) => {
                self.facts.push(Fact::Discord { text: note.text });
            }
            Action::Note(_) => {}
        }
    }

    fn write(&mut self, write: Write) {
        self.store.submit(write);
        let count = self.store.waiting();
        if count > WRITES_MAX {
            self.facts.push(Fact::Overfull { what: "writes waiting for the store", count, max: WRITES_MAX });
        }
        self.commit_soon();
    }

    fn commit_soon(&mut self) {
        let count = self.store.waiting();
        if self.controller.is_commit_due || count == 0 {
            return;
        }
        self.controller.is_commit_due = true;
        let wait = self.rng.ms(COMMIT_MS.0, COMMIT_MS.1);
        self.later(wait, Happening::StoreCommits { run: self.controller.run, count });
    }

    pub(super) fn store_commits(&mut self, count: usize) {
        let back_at = self.store.back_at();
        if back_at > self.now() {
            self.queue.push(back_at, Happening::StoreCommits { run: self.controller.run, count });
            return;
        }
        self.controller.is_commit_due = false;
        let run = self.controller.run;
        if self.passes(run, "a commit before it is durable") {
            return;
        }
        let recorded = self.store.commit(count);
        if self.passes(run, "a commit before the core hears of it") {
            return;
        }
        self.commit_soon();
        for operation in recorded {
            if self.controller.is_running(run) {
                self.fleet_step(Event::Recorded { operation });
            }
        }
    }

    fn crash_if_armed(&mut self, here: Option<CrashPoint>) -> bool {
        let Some((point, down_for)) = self.controller.armed else { return false };
        if here != Some(point) {
            return false;
        }
        self.controller.armed = None;
        self.controller_dies(down_for);
        true
    }

    /// SIGKILL: what it had not written is lost, its peers notice by silence.
    pub(super) fn controller_dies(&mut self, down_for: Duration) {
        if self.controller.process.take().is_none() {
            return;
        }
        self.store.crash(&mut self.rng);
        for machine in &mut self.machines {
            machine.is_warm = false;
        }
        self.facts.push(Fact::ControllerDied);
        let now = self.now();
        self.trace.line(now, || "controller dies".to_owned());
        self.later(down_for, Happening::ControllerStarts);
    }

    /// Everything that piled up is noticed now; its own timer may be noticed before, between or after.
    pub(super) fn controller_thaws(&mut self, run: u32) {
        if !self.controller.is_running(run) || !std::mem::replace(&mut self.controller.is_frozen, false) {
            return;
        }
        self.facts.push(Fact::ControllerThawed);
        let pile = std::mem::take(&mut self.controller.pile);
        let tick_at = self.rng.index(pile.len() + 1);
        for (i, happening) in pile.into_iter().enumerate() {
            if i == tick_at && self.controller.is_running(run) {
                self.fleet_step(Event::Tick);
            }
            self.happen(happening);
        }
        if self.controller.is_running(run) {
            self.fleet_step(Event::Tick);
        }
    }
}
