//! The agent's decisions: one engine, brought up, watched, drained and reported.

use std::collections::BTreeMap;

use cic_common::assignment::Assignment;
use cic_common::id::{Incarnation, NodeId, OperationId, Term};
use cic_common::notice::{Notice, NoticeKind};
use cic_common::report::{EdgeReport, EngineReport, GpuReport, HostReport, NodeReport, Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome, NodeEvent};
use serde::{Deserialize, Serialize};

use super::event::{Booted, EngineFound, ModelFault, ProbeFault};
use super::restart::Restarts;
use super::stage::{After, Probe, Stage};
use super::{Action, EdgeMode, Event, Timing};

/// Notices remembered at once. A cloud has a handful of sources, each with few open notices.
const NOTICES_MAX: usize = 16;

/// Exit code that asks init for a restart (EX_TEMPFAIL of sysexits).
const EXIT_RESTART: u8 = 75;

/// What an agent is before anything happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    pub node: NodeId,
    pub role: Role,
    pub incarnation: Incarnation,
    pub timing: Timing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct OpenNotice {
    kind: NoticeKind,
    deadline: Mono,
}

/// The agent's decisions.
#[derive(Debug)]
pub struct Agent {
    spec: AgentSpec,
    stage: Stage,
    phase_since: Mono,
    reason: String,
    heartbeat_at: Mono,
    term: Term,
    assignment: Option<Assignment>,
    attempt: u32,
    restarts: Restarts,
    restart_count: u32,
    is_adopted: bool,
    was_ready: bool,
    last_exit: Option<String>,
    wants_replacement: Option<String>,
    notices: BTreeMap<(String, String), OpenNotice>,
    host: HostReport,
    gpu: GpuReport,
    edge: EdgeReport,
}

impl Agent {
    #[must_use]
    pub fn new(spec: AgentSpec) -> Self {
        let restarts = Restarts::new(spec.timing.failure_window, spec.incarnation.0);
        Self {
            spec,
            stage: Stage::Idle,
            phase_since: Mono::ZERO,
            reason: "agent started".to_owned(),
            heartbeat_at: Mono::ZERO,
            term: Term(0),
            assignment: None,
            attempt: 0,
            restarts,
            restart_count: 0,
            is_adopted: false,
            was_ready: false,
            last_exit: None,
            wants_replacement: None,
            notices: BTreeMap::new(),
            host: HostReport::default(),
            gpu: GpuReport::Absent,
            edge: EdgeReport::default(),
        }
    }

    /// Takes in one event and appends what is to be done about it.
    pub fn step(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Booted(booted) => self.booted(now, booted, out),
            Event::Assigned { term, assignment } => self.assigned(now, term, assignment, out),
            Event::Commanded { operation, term, command } => self.commanded(now, operation, term, command, out),
            Event::ModelMounted { attempt, result } => self.mounted(now, attempt, result, out),
            Event::ModelVerified { attempt, result } => self.verified(now, attempt, result, out),
            Event::EngineStarted { attempt, pid } => self.started(now, attempt, pid, out),
            Event::EngineStartFailed { attempt, reason, may_heal } => {
                if self.stage == (Stage::Starting { attempt }) {
                    self.fail(now, Phase::Loading, reason, may_heal, out);
                }
            }
            Event::EngineExited { pid, how, log_tail } => self.exited(now, pid, how, &log_tail, out),
            Event::EngineProbed { pid, result } => self.probed(now, pid, result, out),
            Event::HostSampled(host) => self.host = host,
            Event::GpuSampled(gpu) => self.gpu = gpu,
            Event::EdgeCounted(edge) => self.edge = edge,
            Event::NoticeSeen { kind, source, id, deadline } => {
                self.noticed(now, kind, source, id, deadline, out);
            }
            Event::NoticeLifted { source, id } => self.notice_lifted(now, source, id, out),
            Event::StopAsked { with_engine, reason } => self.stop_asked(now, with_engine, reason, out),
        }
        self.pass_time(now, out);
    }

    /// When a tick is wanted if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        let timing = &self.spec.timing;
        let stage = match &self.stage {
            Stage::Loading { since, probe, .. } => {
                Some((*since + timing.start_gate).min(self.probe_deadline(*probe)))
            }
            Stage::Serving { probe, .. } => Some(self.probe_deadline(*probe)),
            Stage::Waiting { until, .. } => Some(*until),
            Stage::Draining { until, poll, .. } => Some((*until).min(*poll)),
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Stopping { .. }
            | Stage::Stopped
            | Stage::Failed => None,
        };
        Some(stage.map_or(self.heartbeat_at, |at| at.min(self.heartbeat_at)))
    }

    /// What the node says of itself at `now`.
    #[must_use]
    pub fn report(&self, now: Mono) -> NodeReport {
        NodeReport {
            phase: self.stage.phase(),
            phase_for_ms: millis(now.since(self.phase_since)),
            reason: self.reason.clone(),
            deployment: self.assignment.as_ref().map(|a| a.deployment.clone()),
            engine: EngineReport {
                state: self.stage.engine_state(self.was_ready),
                pid: self.stage.pid(),
                is_adopted: self.is_adopted && self.stage.pid().is_some(),
                restart_count: self.restart_count,
                last_exit: self.last_exit.clone(),
            },
            host: self.host.clone(),
            gpu: self.gpu.clone(),
            edge: self.edge.clone(),
            notice: self.notice(now),
            wants_replacement: self.wants_replacement.clone(),
        }
    }

    /// Highest term heard; commands of a lower one are refused.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    fn booted(&mut self, now: Mono, booted: Booted, out: &mut Vec<Action>) {
        if let Some((term, assignment)) = booted.remembered {
            self.term = self.term.max(term);
            self.assignment.get_or_insert(assignment);
        }
        match (self.spec.role, booted.engine) {
            (Role::Gateway, _) => {
                out.push(Action::SetEdge(EdgeMode::Admit));
                self.enter(now, Stage::Passing, "gateway: passes requests to replicas", out);
            }
            (Role::Replica, Some(found)) => self.adopt(now, found, out),
            (Role::Replica, None) => {
                self.refuse("agent started; no engine yet", out);
                if self.assignment.is_some() {
                    self.begin(now, "assignment remembered from the last run", out);
                } else {
                    self.enter(now, Stage::Idle, "waiting for an assignment", out);
                }
            }
        }
    }

    fn adopt(&mut self, now: Mono, found: EngineFound, out: &mut Vec<Action>) {
        let EngineFound { pid, assignment } = found;
        if self.assignment.as_ref().is_some_and(|wanted| *wanted != assignment) {
            decided(out, "keep the running engine", "its start command differs from the assignment (drift)");
        }
        self.assignment = Some(assignment);
        self.is_adopted = true;
        self.refuse("engine found running; not probed yet", out);
        let stage = Stage::Loading { pid, since: now, probe: Probe::Due(now) };
        self.enter(now, stage, &format!("adopted engine pid {pid}"), out);
    }

    fn assigned(&mut self, now: Mono, term: Term, assignment: Assignment, out: &mut Vec<Action>) {
        if term < self.term {
            decided(out, "ignore an assignment", &format!("its term {term} is below {}", self.term));
            return;
        }
        self.term = term;
        if self.spec.role == Role::Gateway {
            return;
        }
        let is_same = self.assignment.as_ref() == Some(&assignment);
        match &self.stage {
            Stage::Idle | Stage::Waiting { .. } | Stage::Failed if !is_same || self.stage == Stage::Idle => {
                out.push(Action::Remember { term, assignment: assignment.clone() });
                self.assignment = Some(assignment);
                self.begin(now, "assignment received", out);
            }
            Stage::Mounting { .. } | Stage::Verifying { .. } if !is_same => {
                out.push(Action::Remember { term, assignment: assignment.clone() });
                self.assignment = Some(assignment);
                self.begin(now, "assignment changed", out);
            }
            Stage::Starting { .. } | Stage::Loading { .. } | Stage::Serving { .. } if !is_same => {
                decided(out, "keep the running engine", "the assignment changed; a replacement brings the new one");
            }
            Stage::Idle
            | Stage::Waiting { .. }
            | Stage::Failed
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Loading { .. }
            | Stage::Serving { .. }
            | Stage::Passing
            | Stage::Draining { .. }
            | Stage::Stopping { .. }
            | Stage::Stopped => {}
        }
    }

    fn commanded(
        &mut self,
        now: Mono,
        operation: OperationId,
        term: Term,
        command: Command,
        out: &mut Vec<Action>,
    ) {
        if term < self.term {
            let outcome = CommandOutcome::RefusedTerm { newest: self.term };
            out.push(Action::Tell(NodeEvent::CommandDone { operation, outcome }));
            return;
        }
        self.term = term;
        out.push(Action::Tell(NodeEvent::CommandDone { operation, outcome: CommandOutcome::Accepted }));
        match command {
            Command::Drain { within_ms, reason } => {
                let until = now + std::time::Duration::from_millis(within_ms);
                self.drain(now, until, After::Rest, false, &reason, out);
            }
            Command::RestartAgent { reason } => out.push(Action::Exit { code: EXIT_RESTART, reason }),
        }
    }

    /// Starts over from the model step with a new attempt.
    fn begin(&mut self, now: Mono, why: &str, out: &mut Vec<Action>) {
        let Some(assignment) = &self.assignment else { return };
        self.attempt += 1;
        let attempt = self.attempt;
        out.push(Action::MountModel { attempt, model: assignment.model.clone() });
        self.enter(now, Stage::Mounting { attempt }, why, out);
    }

    fn mounted(&mut self, now: Mono, attempt: u32, result: Result<(), ModelFault>, out: &mut Vec<Action>) {
        if self.stage != (Stage::Mounting { attempt }) {
            return;
        }
        let Some(assignment) = &self.assignment else { return };
        match result {
            Ok(()) => {
                out.push(Action::VerifyModel { attempt, model: assignment.model.clone() });
                self.enter(now, Stage::Verifying { attempt }, "model directory is there", out);
            }
            Err(fault) => self.fail(now, Phase::Mounting, fault.to_string(), fault.may_heal(), out),
        }
    }

    fn verified(&mut self, now: Mono, attempt: u32, result: Result<(), ModelFault>, out: &mut Vec<Action>) {
        if self.stage != (Stage::Verifying { attempt }) {
            return;
        }
        let Some(assignment) = &self.assignment else { return };
        match result {
            Ok(()) => {
                out.push(Action::StartEngine { attempt, assignment: assignment.clone() });
                self.enter(now, Stage::Starting { attempt }, "every shard is there; starting the engine", out);
            }
            Err(fault) => self.fail(now, Phase::Verifying, fault.to_string(), fault.may_heal(), out),
        }
    }

    fn started(&mut self, now: Mono, attempt: u32, pid: u32, out: &mut Vec<Action>) {
        if self.stage == (Stage::Starting { attempt }) {
            self.is_adopted = false;
            self.was_ready = false;
            let probe = Probe::Due(now + self.spec.timing.probe_loading);
            let reason = format!("engine pid {pid} is loading");
            self.enter(now, Stage::Loading { pid, since: now, probe }, &reason, out);
        } else if self.stage.pid() != Some(pid) {
            decided(out, "stop an engine that is no longer wanted", "the node moved on while it was starting");
            out.push(Action::StopEngine { pid, grace_ms: millis(self.spec.timing.stop_grace) });
        }
    }

    fn probed(&mut self, now: Mono, pid: u32, result: Result<(), ProbeFault>, out: &mut Vec<Action>) {
        let timing = self.spec.timing;
        match (&mut self.stage, result) {
            (Stage::Loading { pid: current, .. }, Ok(())) if *current == pid => {
                self.was_ready = true;
                out.push(Action::SetEdge(EdgeMode::Admit));
                let probe = Probe::Due(now + timing.probe_serving);
                let reason = format!("engine pid {pid} answered health, models and a completion");
                self.enter(now, Stage::Serving { pid, failures: 0, probe }, &reason, out);
            }
            (Stage::Loading { pid: current, probe, .. }, Err(fault)) if *current == pid => {
                *probe = Probe::Due(now + timing.probe_loading);
                if self.was_ready {
                    self.reason = fault.to_string();
                }
            }
            (Stage::Serving { pid: current, failures, probe }, Ok(())) if *current == pid => {
                *failures = 0;
                *probe = Probe::Due(now + timing.probe_serving);
            }
            (Stage::Serving { pid: current, failures, probe }, Err(fault)) if *current == pid => {
                *failures += 1;
                *probe = Probe::Due(now + timing.probe_loading);
                if *failures >= timing.probe_failures_max {
                    let reason = format!("engine pid {pid} stopped answering: {fault}");
                    self.refuse(&reason, out);
                    let stage = Stage::Loading { pid, since: now, probe: Probe::Due(now) };
                    self.enter(now, stage, &reason, out);
                }
            }
            // An answer about an engine that this stage is no longer about.
            (
                Stage::Loading { .. }
                | Stage::Serving { .. }
                | Stage::Idle
                | Stage::Mounting { .. }
                | Stage::Verifying { .. }
                | Stage::Starting { .. }
                | Stage::Passing
                | Stage::Waiting { .. }
                | Stage::Draining { .. }
                | Stage::Stopping { .. }
                | Stage::Stopped
                | Stage::Failed,
                Ok(()) | Err(_),
            ) => {}
        }
    }

    fn exited(&mut self, now: Mono, pid: u32, how: String, log_tail: &[String], out: &mut Vec<Action>) {
        if self.stage.pid() != Some(pid) {
            return;
        }
        out.push(Action::Tell(NodeEvent::EngineExited { pid: Some(pid), how: how.clone() }));
        self.last_exit = Some(how.clone());
        match self.stage.clone() {
            Stage::Loading { .. } | Stage::Serving { .. } => {
                let last_line = log_tail.iter().rev().find(|line| !line.trim().is_empty());
                let reason = match last_line {
                    Some(line) => format!("engine ended with {how}; its last line: {}", line.trim()),
                    None => format!("engine ended with {how}, having written nothing"),
                };
                self.fail(now, Phase::Loading, reason, true, out);
            }
            Stage::Draining { until, poll, then, keep_engine, .. } => {
                self.stage = Stage::Draining { pid: None, until, poll, then, keep_engine };
            }
            Stage::Stopping { then, .. } => self.after(now, then, out),
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Stopped
            | Stage::Failed => {}
        }
    }

    /// Waits and tries again, or gives up, and asks for a replacement when healing alone is not in sight.
    fn fail(&mut self, now: Mono, phase: Phase, reason: String, may_heal: bool, out: &mut Vec<Action>) {
        self.refuse(&reason, out);
        let (count, wait) = self.restarts.failed(now);
        if !may_heal || count >= self.spec.timing.failures_max {
            if self.wants_replacement.is_none() {
                out.push(Action::Tell(NodeEvent::ReplacementWanted { reason: reason.clone() }));
            }
            self.wants_replacement = Some(reason.clone());
        }
        if may_heal {
            self.restart_count += 1;
            let text = format!("{reason}; try {} in {:.1} s", count + 1, wait.as_secs_f32());
            decided(out, "wait and try again", &text);
            self.enter(now, Stage::Waiting { phase, until: now + wait }, &text, out);
        } else {
            decided(out, "give up", &reason);
            self.enter(now, Stage::Failed, &reason, out);
        }
    }

    fn noticed(
        &mut self,
        now: Mono,
        kind: NoticeKind,
        source: String,
        id: String,
        deadline: Mono,
        out: &mut Vec<Action>,
    ) {
        let key = (source.clone(), id.clone());
        if !self.notices.contains_key(&key) && self.notices.len() == NOTICES_MAX {
            decided(out, "drop a notice", "too many are open");
            return;
        }
        let is_new = self.notices.insert(key, OpenNotice { kind, deadline }).is_none();
        if is_new {
            let notice = Notice { kind, source, id, left_ms: millis(deadline.since(now)) };
            out.push(Action::Tell(NodeEvent::NoticeSeen { notice }));
            out.push(Action::Heartbeat);
        }
        if kind.takes_the_node() {
            let reserve = self.spec.timing.notice_reserve.min(deadline.since(now) / 2);
            self.drain(now, deadline - reserve, After::Rest, false, &format!("{kind} notice"), out);
        }
    }

    fn notice_lifted(&mut self, now: Mono, source: String, id: String, out: &mut Vec<Action>) {
        let Some(lifted) = self.notices.remove(&(source, id)) else { return };
        let still_taken = self.notices.values().any(|notice| notice.kind.takes_the_node());
        if !lifted.kind.takes_the_node() || still_taken {
            return;
        }
        match self.stage.clone() {
            Stage::Draining { pid: Some(pid), then: After::Rest, .. } => {
                self.refuse("notice lifted; probing the engine", out);
                let stage = Stage::Loading { pid, since: now, probe: Probe::Due(now) };
                self.enter(now, stage, "notice lifted", out);
            }
            Stage::Draining { pid: None, then: After::Rest, .. } | Stage::Stopped => {
                if self.spec.role == Role::Gateway {
                    out.push(Action::SetEdge(EdgeMode::Admit));
                    self.enter(now, Stage::Passing, "notice lifted", out);
                } else {
                    self.begin(now, "notice lifted", out);
                }
            }
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Loading { .. }
            | Stage::Serving { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Draining { .. }
            | Stage::Stopping { .. }
            | Stage::Failed => {}
        }
    }

    fn stop_asked(&mut self, now: Mono, with_engine: bool, reason: String, out: &mut Vec<Action>) {
        let until = now + self.spec.timing.stop_grace;
        self.drain(now, until, After::Exit, !with_engine, &reason, out);
    }

    /// Stops admitting requests; once the running ones are done or `until` has passed, goes on with `then`.
    /// A drain already under way is only ever brought forward.
    fn drain(
        &mut self,
        now: Mono,
        until: Mono,
        then: After,
        keep_engine: bool,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        match &mut self.stage {
            Stage::Draining { until: current, then: after, keep_engine: keep, .. } => {
                *current = until.min(*current);
                if then == After::Exit {
                    (*after, *keep) = (then, keep_engine);
                }
            }
            Stage::Stopping { then: after, .. } => {
                if *after != After::Exit {
                    *after = then;
                }
            }
            Stage::Stopped => {
                if then == After::Exit {
                    self.after(now, then, out);
                }
            }
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Loading { .. }
            | Stage::Serving { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Failed => {
                out.push(Action::SetEdge(EdgeMode::Drain { reason: reason.to_owned() }));
                decided(out, "drain", reason);
                let pid = self.stage.pid();
                let stage = Stage::Draining { pid, until, poll: now, then, keep_engine };
                self.enter(now, stage, reason, out);
            }
        }
    }

    fn after(&mut self, now: Mono, then: After, out: &mut Vec<Action>) {
        match then {
            After::Rest => {
                out.push(Action::Tell(NodeEvent::Farewell { reason: self.reason.clone() }));
                let reason = self.reason.clone();
                self.enter(now, Stage::Stopped, &reason, out);
            }
            After::Retry => {
                let reason = self.reason.clone();
                self.fail(now, Phase::Loading, reason, true, out);
            }
            After::Exit => {
                let reason = self.reason.clone();
                self.enter(now, Stage::Stopped, &reason, out);
                out.push(Action::Exit { code: 0, reason });
            }
        }
    }

    /// What is due at `now` whatever happened.
    fn pass_time(&mut self, now: Mono, out: &mut Vec<Action>) {
        let timing = self.spec.timing;
        match &mut self.stage {
            Stage::Loading { pid, since, .. } if now.since(*since) >= timing.start_gate => {
                let pid = *pid;
                let reason = format!("engine pid {pid} was not ready within {} s", timing.start_gate.as_secs());
                self.refuse(&reason, out);
                out.push(Action::StopEngine { pid, grace_ms: millis(timing.stop_grace) });
                self.enter(now, Stage::Stopping { pid, then: After::Retry }, &reason, out);
            }
            Stage::Loading { pid, probe, .. } => {
                let pid = *pid;
                let is_due = is_due(probe, now, timing);
                self.ask(is_due, pid, true, out);
            }
            Stage::Serving { pid, probe, .. } => {
                let pid = *pid;
                let is_due = is_due(probe, now, timing);
                self.ask(is_due, pid, false, out);
            }
            Stage::Waiting { until, .. } if now >= *until => self.begin(now, "trying again", out),
            Stage::Draining { pid, until, poll, then, keep_engine } => {
                if self.edge.in_flight > 0 && now < *until {
                    if now >= *poll {
                        *poll = now + timing.drain_poll;
                    }
                } else {
                    let (pid, then, keep_engine) = (*pid, *then, *keep_engine);
                    match pid {
                        Some(pid) if !keep_engine => {
                            out.push(Action::StopEngine { pid, grace_ms: millis(timing.stop_grace) });
                            let reason = self.reason.clone();
                            self.enter(now, Stage::Stopping { pid, then }, &reason, out);
                        }
                        Some(_) | None => self.after(now, then, out),
                    }
                }
            }
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Stopping { .. }
            | Stage::Stopped
            | Stage::Failed => {}
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + timing.heartbeat;
            out.push(Action::Heartbeat);
        }
    }

    fn ask(&self, is_due: bool, pid: u32, deep: bool, out: &mut Vec<Action>) {
        if let (true, Some(assignment)) = (is_due, &self.assignment) {
            out.push(Action::ProbeEngine { pid, model: assignment.model.name.clone(), deep });
        }
    }

    fn probe_deadline(&self, probe: Probe) -> Mono {
        match probe {
            Probe::Due(at) => at,
            Probe::Asked(since) => since + self.spec.timing.probe_deadline * 2,
        }
    }

    fn refuse(&self, reason: &str, out: &mut Vec<Action>) {
        out.push(Action::SetEdge(EdgeMode::Refuse { reason: reason.to_owned() }));
    }

    fn notice(&self, now: Mono) -> Option<Notice> {
        let first = self
            .notices
            .iter()
            .min_by_key(|(_, notice)| (!notice.kind.takes_the_node(), notice.deadline))?;
        let ((source, id), notice) = first;
        Some(Notice {
            kind: notice.kind,
            source: source.clone(),
            id: id.clone(),
            left_ms: millis(notice.deadline.since(now)),
        })
    }

    fn enter(&mut self, now: Mono, stage: Stage, reason: &str, out: &mut Vec<Action>) {
        let from = self.stage.phase();
        self.stage = stage;
        self.reason = reason.to_owned();
        let to = self.stage.phase();
        if from != to {
            self.phase_since = now;
            self.heartbeat_at = now + self.spec.timing.heartbeat;
            out.push(Action::Tell(NodeEvent::PhaseChanged { from, to, reason: reason.to_owned() }));
            out.push(Action::Heartbeat);
        }
    }
}

fn is_due(probe: &mut Probe, now: Mono, timing: Timing) -> bool {
    let at = match *probe {
        Probe::Due(at) => at,
        // A shell answers every probe; one that did not is asked again rather than awaited for ever.
        Probe::Asked(since) => since + timing.probe_deadline * 2,
    };
    let is_due = now >= at;
    if is_due {
        *probe = Probe::Asked(now);
    }
    is_due
}

fn decided(out: &mut Vec<Action>, what: &str, why: &str) {
    out.push(Action::Decided { what: what.to_owned(), why: why.to_owned() });
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
