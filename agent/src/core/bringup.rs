//! From nothing to a serving engine, and back to the start when it fails.

use cic_common::assignment::Assignment;
use cic_common::id::Term;
use cic_common::report::{Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;

use super::agent::{Agent, decided, millis};
use super::event::{Booted, EngineFound, ModelFault, ProbeFault};
use super::stage::{Probe, Stage};
use super::{Action, EdgeMode};

impl Agent {
    pub(super) fn booted(&mut self, now: Mono, booted: Booted, out: &mut Vec<Action>) {
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

    pub(super) fn adopt(&mut self, now: Mono, found: EngineFound, out: &mut Vec<Action>) {
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

    pub(super) fn assigned(&mut self, now: Mono, term: Term, assignment: Assignment, out: &mut Vec<Action>) {
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
                decided(
                    out,
                    "keep the running engine",
                    "the assignment changed; a replacement brings the new one",
                );
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
            | Stage::Exiting
            | Stage::Stopped { .. } => {}
        }
    }

    /// Starts over from the model step with a new attempt.
    pub(super) fn begin(&mut self, now: Mono, why: &str, out: &mut Vec<Action>) {
        let Some(assignment) = &self.assignment else { return };
        self.attempt += 1;
        let attempt = self.attempt;
        out.push(Action::MountModel { attempt, model: assignment.model.clone() });
        self.enter(now, Stage::Mounting { attempt }, why, out);
    }

    pub(super) fn mounted(
        &mut self,
        now: Mono,
        attempt: u32,
        result: Result<(), ModelFault>,
        out: &mut Vec<Action>,
    ) {
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

    pub(super) fn verified(
        &mut self,
        now: Mono,
        attempt: u32,
        result: Result<(), ModelFault>,
        out: &mut Vec<Action>,
    ) {
        if self.stage != (Stage::Verifying { attempt }) {
            return;
        }
        let Some(assignment) = &self.assignment else { return };
        match result {
            Ok(()) => {
                out.push(Action::StartEngine { attempt, assignment: assignment.clone() });
                self.enter(
                    now,
                    Stage::Starting { attempt },
                    "every shard is there; starting the engine",
                    out,
                );
            }
            Err(fault) => self.fail(now, Phase::Verifying, fault.to_string(), fault.may_heal(), out),
        }
    }

    pub(super) fn started(&mut self, now: Mono, attempt: u32, pid: u32, out: &mut Vec<Action>) {
        if self.stage == (Stage::Starting { attempt }) {
            self.is_adopted = false;
            self.was_ready = false;
            let probe = Probe::Due(now + self.spec.timing.probe_loading);
            let reason = format!("engine pid {pid} is loading");
            self.enter(now, Stage::Loading { pid, since: now, probe }, &reason, out);
        } else if self.stage.pid() != Some(pid) {
            decided(
                out,
                "stop an engine that is no longer wanted",
                "the node moved on while it was starting",
            );
            out.push(Action::StopEngine { pid, grace_ms: millis(self.spec.timing.stop_grace) });
        }
    }

    pub(super) fn probed(
        &mut self,
        now: Mono,
        pid: u32,
        result: Result<(), ProbeFault>,
        out: &mut Vec<Action>,
    ) {
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
                | Stage::Exiting
                | Stage::Stopped { .. }
                | Stage::Failed,
                Ok(()) | Err(_),
            ) => {}
        }
    }

    pub(super) fn exited(
        &mut self,
        now: Mono,
        pid: u32,
        how: String,
        log_tail: &[String],
        out: &mut Vec<Action>,
    ) {
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
            Stage::Draining { until, poll, is_counted, then, keep_engine, .. } => {
                self.stage = Stage::Draining { pid: None, until, poll, is_counted, then, keep_engine };
            }
            Stage::Stopping { then, .. } => self.after(now, then, out),
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Verifying { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Exiting
            | Stage::Stopped { .. }
            | Stage::Failed => {}
        }
    }

    /// Waits and tries again, or gives up, and asks for a replacement when healing alone is not in sight.
    pub(super) fn fail(
        &mut self,
        now: Mono,
        phase: Phase,
        reason: String,
        may_heal: bool,
        out: &mut Vec<Action>,
    ) {
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
}
