//! Runs the agent's real core on a machine: its clock, its disk, its engine, and init that starts it again.

use std::time::Duration;

use cic_agent::core::gpu::GpuEvent;
use cic_agent::core::{
    Action, Activity, Agent, AgentSpec, Booted, EdgeMode, EngineEnd, EngineFound, Event, ModelFault,
    ProbeFault, Reading, Restored, Saved,
};
use cic_common::id::{OperationId, Term};
use cic_common::notice::Cloud;
use cic_common::report::{EdgeReport, HostReport, Role};
use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome, NodeEvent};

use super::clock::Origin;
use super::cloud::VmState;
use super::engine::Engine;
use super::fact::Fact;
use super::fault::SOURCE;
use super::happening::Happening;
use super::machine::{Host, Machine, OUTBOX_MAX, Process};
use super::session::Packet;
use super::world::World;

/// From a host's first answer to the agent's start.
const INIT_MS: (u64, u64) = (500, 4000);

/// From the end of an agent run to the next: systemd's RestartSec.
const RESTART_MS: (u64, u64) = (100, 2000);

/// One look at a model directory.
const MODEL_MS: (u64, u64) = (20, 3000);

/// Making a process.
const SPAWN_MS: (u64, u64) = (1, 20);

/// Actions that one step of an agent may give.
const ACTIONS_MAX: usize = 24;

/// Ticks without time passing before an agent or a controller counts as running in circles.
pub(super) const TICKS_AT_ONCE_MAX: u32 = 50;

/// How often a draining edge says what it still holds.
const EDGE_COUNT: Duration = Duration::from_millis(250);

/// A write to an object store, or a read: seldom seconds, and a few of them never.
const STORE_MS: (u64, u64) = (20, 4000);
const STORE_FAULTS: f64 = 0.1;

impl World {
    pub(super) fn host_boots(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        // A VM that its cloud has stopped does not start by itself.
        if machine.host == Host::Ended || self.cloud.vms()[machine.vm].state == VmState::Stopped {
            return;
        }
        machine.host = Host::Up;
        let wait = self.rng.ms(INIT_MS.0, INIT_MS.1);
        self.later(wait, Happening::AgentStarts { node });
    }

    pub(super) fn agent_starts(&mut self, node: usize) {
        let now = self.now();
        let timing = self.setup.agent_timing;
        let machine = &mut self.machines[node];
        if machine.host != Host::Up || machine.is_frozen || machine.process.is_some() {
            return;
        }
        machine.incarnation = machine.incarnation.next();
        machine.runs += 1;
        let run = machine.runs;
        let spec = AgentSpec {
            node: machine.node.clone(),
            role: Role::Replica,
            incarnation: machine.incarnation,
            timing,
            mounts: "/mounts".to_owned(),
            has_store: true,
            deadman: None,
        };
        machine.process = Some(Process {
            run,
            agent: Agent::new(spec),
            origin: Origin::at(now),
            incarnation: machine.incarnation,
            seq: 0,
            challenge: 0,
            session: None,
            attempts: 0,
            outbox: std::collections::VecDeque::new(),
            event_seq: 0,
            edge: EdgeMode::Refuse { reason: "agent started".to_owned() },
            in_flight: 0,
            routes: RoutingTable::default(),
            wake: None,
            ticks_at: (now, 0),
            term_heard: machine.remembered.as_ref().map_or(Term(0), |(term, _)| *term),
        });
        let engine = machine.engine.as_ref();
        let engine =
            engine.map(|engine| EngineFound { pid: engine.pid, assignment: engine.assignment.clone() });
        let remembered = machine.remembered.clone();
        let booted = Booted { engine, remembered, restarted_for: machine.restarted_for, ..Booted::default() };
        self.agent_hears(node, run, Event::Booted(booted));
        self.agent_hears(node, run, Event::HostSampled(HostReport::default()));
        self.agent_hears(node, run, Event::Gpu(GpuEvent::Absent));
        let sources = vec![SOURCE.to_owned()];
        self.agent_hears(node, run, Event::CloudFound { cloud: Cloud::Aws, sources });
        let wait = self.rng.ms(0, 1000);
        if self.machines[node].notice.is_some() {
            self.tell_notice(node, wait);
        }
        let event = Box::new(Event::SpotSeen { source: SOURCE.to_owned() });
        self.later(wait, Happening::AgentHears { node, run, event });
        self.later(Duration::from_millis(20), Happening::AgentConnects { node, run });
    }

    pub(super) fn agent_wakes(&mut self, node: usize, run: u32, at: Mono) {
        let now = self.now();
        let machine = &mut self.machines[node];
        let is_frozen = machine.is_frozen;
        let Some(process) = machine.running(run).filter(|process| process.wake == Some(at)) else { return };
        process.wake = None;
        if is_frozen {
            return;
        }
        if process.agent.deadline().is_some_and(|due| process.origin.world(due) <= now) {
            process.ticks_at =
                if process.ticks_at.0 == now { (now, process.ticks_at.1 + 1) } else { (now, 0) };
            let count = process.ticks_at.1;
            if count > TICKS_AT_ONCE_MAX {
                let max = TICKS_AT_ONCE_MAX as usize;
                let what = "ticks of an agent without time passing";
                self.facts.push(Fact::Overfull { what, count: count as usize, max });
                return;
            }
            self.agent_hears(node, run, Event::Tick);
        } else {
            self.wake_agent(node);
        }
    }

    pub(super) fn agent_hears(&mut self, node: usize, run: u32, event: Event) {
        self.agent_steps(node, run, event);
    }

    /// Has the core take a command, and returns what it says.
    pub(super) fn agent_ordered(
        &mut self,
        node: usize,
        run: u32,
        operation: OperationId,
        term: Term,
        command: Command,
    ) -> Option<CommandOutcome> {
        self.agent_steps(node, run, Event::Commanded { operation, term, command })
    }

    /// One step of the core, and what it asks for. Returns what became of a command.
    fn agent_steps(&mut self, node: usize, run: u32, event: Event) -> Option<CommandOutcome> {
        let now = self.now();
        let machine = &mut self.machines[node];
        let process = machine.process.as_mut().filter(|process| process.run == run)?;
        if let Event::Assigned { term, .. } | Event::Commanded { term, .. } = &event {
            process.term_heard = process.term_heard.max(*term);
        }
        if event != Event::Tick {
            self.trace.line(now, || format!("{} <- {event:?}", machine.node));
        }
        let mut out = std::mem::take(&mut self.agent_out);
        process.agent.step(process.origin.local(now), event, &mut out);
        if out.len() > ACTIONS_MAX {
            let what = "actions of one agent step";
            self.facts.push(Fact::Overfull { what, count: out.len(), max: ACTIONS_MAX });
        }
        let outcome = out.iter().find_map(|action| match action {
            Action::Tell(NodeEvent::CommandDone { outcome, .. }) => Some(outcome.clone()),
            _ => None,
        });
        for action in out.drain(..) {
            self.agent_does(node, run, action);
        }
        self.agent_out = out;
        self.wake_agent(node);
        outcome
    }

    /// Schedules the tick that the core asks for, unless an earlier one is scheduled already.
    pub(super) fn wake_agent(&mut self, node: usize) {
        let now = self.now();
        let Some(process) = self.machines[node].process.as_mut() else { return };
        let Some(at) = process.agent.deadline().map(|due| process.origin.world(due).max(now)) else { return };
        if process.wake.is_none_or(|wake| at < wake) {
            process.wake = Some(at);
            let run = process.run;
            self.queue.push(at, Happening::AgentWakes { node, run, at });
        }
    }

    fn agent_does(&mut self, node: usize, run: u32, action: Action) {
        let now = self.now();
        let machine = &mut self.machines[node];
        if !matches!(action, Action::Heartbeat) {
            self.trace.line(now, || format!("{} -> {action:?}", machine.node));
        }
        let Some(process) = machine.process.as_mut().filter(|process| process.run == run) else { return };
        match action {
            Action::Heartbeat => self.push_heartbeat(node),
            Action::Tell(event) => self.agent_tells(node, event),
            Action::Remember { term, assignment } => machine.remembered = Some((term, assignment)),
            Action::RememberRestart { term, operation } => machine.restarted_for = Some((term, operation)),
            Action::MountModel { attempt, model } => {
                let result = self.look_at_model(&model.path);
                self.answer_agent(node, run, MODEL_MS, Event::ModelMounted { attempt, result });
            }
            Action::VerifyModel { attempt, model } => {
                let result = self.look_at_model(&model.path);
                self.answer_agent(node, run, MODEL_MS, Event::ModelVerified { attempt, result });
            }
            // Models here have no sources, and no step takes long.
            Action::FetchModel { attempt, url, .. } => {
                let fault = ModelFault::NotFetched { url, cause: "there is no store here".to_owned() };
                let event = Event::ModelFetched { attempt, result: Err(fault) };
                self.answer_agent(node, run, MODEL_MS, event);
            }
            Action::AttachModel { attempt, url, .. } => {
                let fault =
                    ModelFault::NotMounted { url, cause: "there is no such file system here".to_owned() };
                let event = Event::ModelMounted { attempt, result: Err(fault) };
                self.answer_agent(node, run, MODEL_MS, event);
            }
            Action::WarmModel { .. } | Action::LeaveModel => {}
            Action::CheckEngine { attempt, .. } => {
                self.answer_agent(node, run, MODEL_MS, Event::EngineChecked { attempt, result: Ok(()) });
            }
            Action::StartEngine { attempt, assignment, .. } => {
                if machine.engine.is_some() {
                    let (reason, may_heal) = ("port 8100 is in use".to_owned(), true);
                    let event = Event::EngineStartFailed { attempt, reason, may_heal };
                    self.answer_agent(node, run, SPAWN_MS, event);
                    return;
                }
                machine.pid_next += 1;
                let pid = machine.pid_next;
                let engine = Engine::start(now, pid, assignment, &self.setup.engine, &mut self.rng);
                if let Some(at) = engine.fails_at {
                    self.queue.push(at, Happening::EngineEnds { node, pid, how: "exit code 1" });
                }
                machine.engine = Some(engine);
                self.answer_agent(node, run, SPAWN_MS, Event::EngineStarted { attempt, pid });
            }
            Action::ProbeEngine { pid, depth, .. } => {
                let engine = machine.engine.as_ref().filter(|engine| engine.pid == pid);
                let deadline = self.setup.agent_timing.probe_deadline;
                let (at, reading, result) = match engine {
                    Some(engine) => engine.probe(now, depth, deadline, &mut self.rng),
                    None => {
                        let refused = ProbeFault::Health("connection refused".to_owned());
                        (now + Duration::from_millis(1), Reading::default(), Err(refused))
                    }
                };
                let event = Box::new(Event::EngineProbed { pid, reading, result });
                self.queue.push(at, Happening::AgentHears { node, run, event });
            }
            Action::LookAtEngine { pid } => {
                let Some(engine) = machine.engine.as_ref().filter(|engine| engine.pid == pid) else { return };
                // A load writes and reads all along; one that hangs or never gets ready has stopped to.
                let is_still = engine.never_ready() || engine.is_hung;
                let log_bytes = if is_still { 1 } else { 1 + now.as_millis() };
                let activity = Activity { log_bytes, read_bytes: 0 };
                self.answer_agent(node, run, SPAWN_MS, Event::EngineSeen { pid, activity });
            }
            Action::StopEngine { pid, grace_ms, .. } => {
                let Some(engine) = machine.engine.as_ref().filter(|engine| engine.pid == pid) else { return };
                let (at, how) = engine.stop(now, Duration::from_millis(grace_ms), &mut self.rng);
                self.queue.push(at, Happening::EngineEnds { node, pid, how });
            }
            // Off here: see `deadman` of the spec.
            Action::RememberDeadman(_) | Action::PowerOff { .. } => {}
            Action::SaveCrash(_) | Action::SampleGpus | Action::RememberGpus(_) => {}
            Action::SetEdge(mode) => {
                let drains = matches!(mode, EdgeMode::Drain { .. });
                let admitted = process.edge == EdgeMode::Admit;
                process.edge = mode;
                if drains && admitted {
                    process.in_flight = self.rng.range(0, 40) as u32;
                    self.edge_counts(node, run);
                }
            }
            // Its cloud takes it at its time.
            Action::AcknowledgeNotice { .. } => {}
            Action::NameModel { attempt, model } => {
                let result = Ok(format!("digest of {}", model.path));
                self.answer_agent(node, run, MODEL_MS, Event::ModelKnown { attempt, result });
            }
            Action::Checkpoint { occasion, .. } => {
                let saved = Saved { occasion, bytes: 1, request_count: 0, took_ms: 1, missed: Vec::new() };
                let result =
                    if self.rng.chance(STORE_FAULTS) { Err("no answer".to_owned()) } else { Ok(saved) };
                self.answer_agent(node, run, STORE_MS, Event::Checkpointed { occasion, result });
            }
            Action::Restore { from, is_gone } => {
                let result = match self.rng.chance(STORE_FAULTS) {
                    true => Err("no answer".to_owned()),
                    false => Ok(restored(is_gone)),
                };
                self.answer_agent(node, run, STORE_MS, Event::Restored { from, result });
            }
            Action::HandOver => {
                process.in_flight = 0;
                self.edge_counts(node, run);
            }
            Action::Exit { .. } => self.agent_exits(node),
            Action::Warn { .. } | Action::Decided { .. } => {}
        }
    }

    fn look_at_model(&mut self, path: &str) -> Result<(), ModelFault> {
        if self.rng.chance(self.setup.model_faults) {
            return Err(ModelFault::NoDirectory { path: path.to_owned() });
        }
        Ok(())
    }

    fn answer_agent(&mut self, node: usize, run: u32, (low, high): (u64, u64), event: Event) {
        let wait = self.rng.ms(low, high);
        self.later(wait, Happening::AgentHears { node, run, event: Box::new(event) });
    }

    fn agent_tells(&mut self, node: usize, event: NodeEvent) {
        let Some(process) = self.machines[node].process.as_mut() else { return };
        process.event_seq += 1;
        let seq = process.event_seq;
        process.outbox.push_back((seq, event.clone()));
        let count = process.outbox.len();
        if count > OUTBOX_MAX {
            process.outbox.pop_front();
            let what = "unacknowledged events of an agent";
            self.facts.push(Fact::Overfull { what, count, max: OUTBOX_MAX });
        }
        if let Some(session) = process.session {
            self.send_up(session, Packet::Event { seq, event });
        }
    }

    pub(super) fn edge_counts(&mut self, node: usize, run: u32) {
        let finished = self.rng.range(0, 4) as u32;
        let Some(process) = self.machines[node].running(run) else { return };
        process.in_flight = process.in_flight.saturating_sub(finished);
        let in_flight = process.in_flight;
        if in_flight > 0 {
            self.later(EDGE_COUNT, Happening::EdgeCounts { node, run });
        }
        let event = Event::EdgeCounted(EdgeReport { in_flight, ..EdgeReport::default() });
        self.later(Duration::from_millis(1), Happening::AgentHears { node, run, event: Box::new(event) });
    }

    pub(super) fn engine_ends(&mut self, node: usize, pid: u32, how: &'static str) {
        let machine = &mut self.machines[node];
        if machine.engine.as_ref().is_none_or(|engine| engine.pid != pid) {
            return;
        }
        machine.engine = None;
        let Some(run) = machine.process.as_ref().map(|process| process.run) else { return };
        let log_tail = vec!["bye".to_owned()];
        let end = EngineEnd { how: how.to_owned(), log_tail, pids: vec![pid], ..EngineEnd::default() };
        let event = Event::EngineExited { pid, end };
        self.later(Duration::from_millis(1), Happening::AgentHears { node, run, event: Box::new(event) });
    }

    /// The agent ends in order: its links are closed behind it, and init starts it again.
    pub(super) fn agent_exits(&mut self, node: usize) {
        let session = self.machines[node].process.as_ref().and_then(|process| process.session);
        if let Some(session) = session {
            self.send_up(session, Packet::Close);
        }
        self.agent_dies(node);
    }

    /// The agent's process is gone while its host lives: the kernel closes its sockets, init starts it again.
    pub(super) fn agent_dies(&mut self, node: usize) {
        if self.machines[node].process.is_none() {
            return;
        }
        self.end_process(node);
        self.poll_channel_breaks(node);
        let wait = self.rng.ms(RESTART_MS.0, RESTART_MS.1);
        self.later(wait, Happening::AgentStarts { node });
    }

    /// Takes the process away and keeps what it said last.
    pub(super) fn end_process(&mut self, node: usize) {
        let now = self.now();
        let machine = &mut self.machines[node];
        machine.pile.clear();
        let Some(mut process) = machine.process.take() else { return };
        process.seq += 1;
        machine.last_words = Some(heartbeat_of(machine, &process, now));
        machine.last_hello = Some(hello_of(machine, node, &process, now));
        if let Some(session) = process.session {
            self.sessions[session].close_at_agent();
        }
    }

    pub(super) fn node_thaws(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        if !std::mem::replace(&mut machine.is_frozen, false) {
            return;
        }
        let pile = std::mem::take(&mut machine.pile);
        for happening in pile {
            self.happen(happening);
        }
        if self.machines[node].process.is_some() {
            self.wake_agent(node);
        } else {
            self.later(Duration::from_millis(100), Happening::AgentStarts { node });
        }
    }
}

/// A report with its fences, as heartbeats and poll answers carry it.
pub(super) fn heartbeat_of(machine: &Machine, process: &Process, now: Mono) -> cic_common::report::Heartbeat {
    cic_common::report::Heartbeat {
        node: machine.node.clone(),
        incarnation: process.incarnation,
        seq: process.seq,
        challenge: process.challenge,
        report: process.agent.report(process.origin.local(now)),
    }
}

/// The first message of a connection.
pub(super) fn hello_of(
    machine: &Machine,
    node: usize,
    process: &Process,
    now: Mono,
) -> cic_common::wire::message::Hello {
    cic_common::wire::message::Hello {
        node: machine.node.clone(),
        incarnation: process.incarnation,
        role: Role::Replica,
        address: format!("10.0.{}.{}:7444", node / 256, node % 256),
        version: "sim".to_owned(),
        keeps_checkpoints: true,
        routes: None,
        report: process.agent.report(process.origin.local(now)),
    }
}

/// What a predecessor left: nothing to run again.
fn restored(is_last: bool) -> Restored {
    Restored {
        age_ms: 1000,
        took_ms: 10,
        assignment: None,
        model_digest: None,
        unfinished_count: 0,
        rerun_count: 0,
        skipped: Vec::new(),
        is_last,
    }
}
