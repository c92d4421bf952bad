//! The agent's decisions: one engine, brought up, watched, drained and reported.

use std::collections::BTreeMap;

use cic_common::assignment::Assignment;
use cic_common::id::{Incarnation, NodeId, Term};
use cic_common::notice::NoticeKind;
use cic_common::report::{
    EdgeReport, EngineReport, GpuReport, HostReport, NodeReport, Phase, Role, StateDigest,
};
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;
use serde::{Deserialize, Serialize};

use super::restart::Restarts;
use super::stage::{After, Probe, Stage};
use super::{Action, EdgeMode, Event, Timing};

/// What an agent is before anything happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    pub node: NodeId,
    pub role: Role,
    pub incarnation: Incarnation,
    pub timing: Timing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpenNotice {
    pub(super) kind: NoticeKind,
    pub(super) deadline: Mono,
}

/// The agent's decisions.
#[derive(Debug)]
pub struct Agent {
    pub(super) spec: AgentSpec,
    pub(super) stage: Stage,
    pub(super) phase_since: Mono,
    pub(super) reason: String,
    pub(super) heartbeat_at: Mono,
    pub(super) term: Term,
    pub(super) assignment: Option<Assignment>,
    pub(super) attempt: u32,
    pub(super) restarts: Restarts,
    pub(super) restart_count: u32,
    pub(super) is_adopted: bool,
    pub(super) was_ready: bool,
    pub(super) last_exit: Option<String>,
    pub(super) wants_replacement: Option<String>,
    pub(super) notices: BTreeMap<(String, String), OpenNotice>,
    pub(super) host: HostReport,
    pub(super) gpu: GpuReport,
    pub(super) edge: EdgeReport,
}

impl Agent {
    #[must_use]
    pub fn new(spec: AgentSpec) -> Self {
        let restarts = Restarts::new(spec.timing.failure_window, &spec.node, spec.incarnation);
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
            Event::Commanded { operation, term, command } => {
                self.commanded(now, operation, term, command, out)
            }
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
            Event::EdgeCounted(edge) => {
                self.edge = edge;
                if let Stage::Draining { is_counted, .. } = &mut self.stage {
                    *is_counted = true;
                }
            }
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
            Stage::Stopping { until, .. } => Some(*until),
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Exiting
            | Stage::Stopped { .. }
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
                drift: None,
            },
            host: self.host.clone(),
            gpu: self.gpu.clone(),
            edge: self.edge.clone(),
            notice: self.notice(now),
            wants_replacement: self.wants_replacement.clone(),
            state: StateDigest::default(),
        }
        .sealed(0)
    }

    /// What is due at `now` whatever happened.
    pub(super) fn pass_time(&mut self, now: Mono, out: &mut Vec<Action>) {
        let timing = self.spec.timing;
        match &mut self.stage {
            Stage::Loading { pid, since, .. } if now.since(*since) >= timing.start_gate => {
                let pid = *pid;
                let reason =
                    format!("engine pid {pid} was not ready within {} s", timing.start_gate.as_secs());
                self.refuse(&reason, out);
                self.stop_engine(now, pid, After::Retry, &reason, out);
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
            Stage::Draining { pid, until, poll, is_counted, then, keep_engine } => {
                if (self.edge.in_flight > 0 || !*is_counted) && now < *until {
                    if now >= *poll {
                        *poll = now + timing.drain_poll;
                    }
                } else {
                    let (pid, then, keep_engine) = (*pid, *then, *keep_engine);
                    match pid {
                        _ if keep_engine && then == After::Exit => {
                            let reason = self.reason.clone();
                            self.enter(now, Stage::Exiting, &reason, out);
                            out.push(Action::Exit { code: 0, reason });
                        }
                        Some(pid) => {
                            let reason = self.reason.clone();
                            self.stop_engine(now, pid, then, &reason, out);
                        }
                        None => self.after(now, then, out),
                    }
                }
            }
            Stage::Stopping { pid, then, until } if now >= *until => {
                let (pid, then) = (*pid, *then);
                self.unkillable(now, pid, then, out);
            }
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Stopping { .. }
            | Stage::Exiting
            | Stage::Stopped { .. }
            | Stage::Failed => {}
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + timing.heartbeat;
            out.push(Action::Heartbeat);
        }
    }

    fn stop_engine(&mut self, now: Mono, pid: u32, then: After, reason: &str, out: &mut Vec<Action>) {
        let Timing { stop_grace, kill_grace, .. } = self.spec.timing;
        out.push(Action::StopEngine { pid, grace_ms: millis(stop_grace) });
        let until = now + stop_grace + kill_grace;
        self.enter(now, Stage::Stopping { pid, then, until }, reason, out);
    }

    /// The engine outlived SIGKILL: it hangs in the kernel, and only the VM's end frees what it holds.
    fn unkillable(&mut self, now: Mono, pid: u32, then: After, out: &mut Vec<Action>) {
        let reason = format!("engine pid {pid} survives SIGKILL: it hangs in the kernel");
        match then {
            After::Rest | After::Leave | After::Exit => {
                decided(out, "leave the engine behind", &reason);
                self.after(now, then, out);
            }
            After::Again | After::Retry => self.fail(now, Phase::Loading, reason, false, out),
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

    pub(super) fn refuse(&self, reason: &str, out: &mut Vec<Action>) {
        out.push(Action::SetEdge(EdgeMode::Refuse { reason: reason.to_owned() }));
    }

    pub(super) fn enter(&mut self, now: Mono, stage: Stage, reason: &str, out: &mut Vec<Action>) {
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

pub(super) fn decided(out: &mut Vec<Action>, what: &str, why: &str) {
    out.push(Action::Decided { what: what.to_owned(), why: why.to_owned() });
}

pub(super) fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
