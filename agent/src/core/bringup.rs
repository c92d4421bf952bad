//! From nothing to a serving engine, and back to the start when it fails.

use cic_common::assignment::Assignment;
use cic_common::id::Term;
use cic_common::report::{GpuReport, Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;

use super::agent::{Agent, decided, millis};
use super::deadman::Deadman;
use super::event::{Booted, CheckFault, EngineFound, ProbeFault, Reading};
use super::gate::Gate;
use super::progress::Progress;
use super::search::Search;
use super::stage::{After, Heal, Probe, Stage};
use super::{Action, EdgeMode};

impl Agent {
    pub(super) fn booted(&mut self, now: Mono, booted: Booted, out: &mut Vec<Action>) {
        self.restarted_for = booted.restarted_for;
        if let Some(deadman) = &mut self.deadman {
            booted.deadman.into_iter().for_each(|(memo, ago)| deadman.restore(memo, ago));
            // A task that is remembered was given by a controller.
            booted.remembered.iter().for_each(|_| deadman.confirm());
        }
        if let Some((term, assignment)) = booted.remembered {
            self.term = self.term.max(term);
            self.assignment.get_or_insert(assignment);
        }
        if let Some(memo) = booted.gpus {
            self.baseline = memo.baseline;
            self.gpus.restore(memo.marks);
            // A wish that waited for the driver's first word would be taken for withdrawn.
            self.weigh_condition(now, out);
        }
        match (self.spec.role, booted.engine) {
            (Role::Gateway, _) => {
                out.push(Action::SetEdge(EdgeMode::Admit));
                self.enter(now, Stage::Passing, "gateway: passes requests to replicas", out);
            }
            (Role::Replica, Some(found)) => {
                self.remember_model(booted.model_digest);
                self.adopt(now, found, out);
            }
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
        if let Some(wanted) = self.assignment.take() {
            self.drift = drift(&assignment, &wanted);
            self.wanted = (wanted != assignment).then_some(wanted);
        }
        if let Some(drift) = &self.drift {
            decided(out, "keep the running engine", drift);
        }
        self.assignment = Some(assignment);
        self.is_adopted = true;
        self.engine_since = now;
        self.engine_pids = vec![pid];
        self.has_run_engine = true;
        self.refuse("engine found running; not probed yet", out);
        let stage = Stage::Loading { pid, probe: Probe::Due(now), gate: Gate::begin(now, false) };
        self.enter(now, stage, &format!("adopted engine pid {pid}"), out);
    }

    pub(super) fn assigned(&mut self, now: Mono, term: Term, assignment: Assignment, out: &mut Vec<Action>) {
        if term < self.term {
            decided(out, "ignore an assignment", &format!("its term {term} is below {}", self.term));
            return;
        }
        self.term = term;
        self.deadman.iter_mut().for_each(Deadman::confirm);
        if self.spec.role == Role::Gateway {
            return;
        }
        let is_same = self.assignment.as_ref() == Some(&assignment);
        match &self.stage {
            Stage::Idle | Stage::Waiting { .. } | Stage::Failed { .. }
                if !is_same || self.stage == Stage::Idle =>
            {
                out.push(Action::Remember { term, assignment: assignment.clone() });
                self.assignment = Some(assignment);
                self.begin(now, "assignment received", out);
            }
            Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
                if !is_same =>
            {
                out.push(Action::Remember { term, assignment: assignment.clone() });
                self.assignment = Some(assignment);
                self.begin(now, "assignment changed", out);
            }
            Stage::Starting { .. } | Stage::Loading { .. } | Stage::Serving { .. } => {
                let running = self.assignment.as_ref();
                let drift = running.and_then(|running| drift(running, &assignment));
                if let (Some(drift), true) = (&drift, drift != self.drift) {
                    decided(out, "keep the running engine", drift);
                }
                self.drift = drift;
                self.want_next(term, assignment, out);
            }
            Stage::Draining { .. } | Stage::Stopping { .. } | Stage::Proving { .. } => {
                self.want_next(term, assignment, out);
            }
            Stage::Idle
            | Stage::Waiting { .. }
            | Stage::Failed { .. }
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
            | Stage::Passing
            | Stage::Exiting
            | Stage::Stopped { .. } => {}
        }
    }

    /// Keeps what is asked for until an engine is started next.
    fn want_next(&mut self, term: Term, assignment: Assignment, out: &mut Vec<Action>) {
        let is_new = self.wanted.as_ref().or(self.assignment.as_ref()) != Some(&assignment);
        if is_new {
            out.push(Action::Remember { term, assignment: assignment.clone() });
        }
        self.wanted = (self.assignment.as_ref() != Some(&assignment)).then_some(assignment);
    }

    /// Starts over from the model step with a new attempt.
    pub(super) fn begin(&mut self, now: Mono, why: &str, out: &mut Vec<Action>) {
        if let Some(wanted) = self.wanted.take() {
            self.assignment = Some(wanted);
        }
        self.forget_model();
        let Some(assignment) = &self.assignment else { return };
        self.attempt += 1;
        let search = Search::begin(assignment.model.clone(), self.spec.mounts.clone(), &self.spec.node);
        let place = search.place();
        self.search = Some(search);
        self.look(now, place, why, out);
    }

    pub(super) fn checked(
        &mut self,
        now: Mono,
        attempt: u32,
        result: Result<(), CheckFault>,
        out: &mut Vec<Action>,
    ) {
        if !matches!(self.stage, Stage::Checking { attempt: current, .. } if current == attempt) {
            return;
        }
        match result {
            Ok(()) => self.start(now, attempt, out),
            Err(fault) => self.fail(now, Phase::Verifying, fault.reason, heal_of(fault.may_heal), out),
        }
    }

    pub(super) fn ask_for_check(&self, attempt: u32, out: &mut Vec<Action>) {
        if let (Some(mut assignment), Some(directory)) = (self.assignment.clone(), self.model_directory()) {
            assignment.model.path = directory;
            out.push(Action::CheckEngine { attempt, assignment, gpus: self.gpu_facts() });
        }
    }

    /// Starts the engine, unless the GPUs forbid it.
    pub(super) fn start(&mut self, now: Mono, attempt: u32, out: &mut Vec<Action>) {
        let (Some(assignment), Some(directory)) = (&self.assignment, self.model_directory()) else { return };
        if let Some((action, reason)) = self.gpus.condemned() {
            let reason = format!("no engine is started on a GPU that needs to {action}: {reason}");
            return self.fail(now, Phase::Verifying, reason, Heal::GpuSound, out);
        }
        if let GpuReport::Wedged { reason } = self.gpus.report() {
            let reason = format!("no engine is started while the driver hangs: {reason}");
            return self.fail(now, Phase::Verifying, reason, Heal::Retry, out);
        }
        if let Some(what) = self.held_memory() {
            let reason = format!("gpu_leaked: no engine is started on to memory that is held: {what}");
            return self.fail(now, Phase::Verifying, reason, Heal::GpuFree, out);
        }
        out.push(Action::StartEngine { attempt, assignment: assignment.clone(), directory });
        self.has_run_engine = true;
        self.enter(
            now,
            Stage::Starting { attempt },
            "flags, memory and driver are right; starting the engine",
            out,
        );
    }

    pub(super) fn started(&mut self, now: Mono, attempt: u32, pid: u32, out: &mut Vec<Action>) {
        if self.stage == (Stage::Starting { attempt }) {
            self.is_adopted = false;
            self.was_ready = false;
            self.drift = None;
            self.doubt = None;
            self.engine_since = now;
            self.engine_pids = vec![pid];
            self.gpus.engine_started(now);
            let probe = Probe::Due(now + self.spec.timing.probe_loading);
            let reason = format!("engine pid {pid} is loading");
            self.enter(now, Stage::Loading { pid, probe, gate: Gate::begin(now, false) }, &reason, out);
        } else if self.stage.pid() != Some(pid) {
            decided(
                out,
                "stop an engine that is no longer wanted",
                "the node moved on while it was starting",
            );
            let grace_ms = millis(self.stop_grace(now));
            out.push(Action::StopEngine { pid, grace_ms, autopsy: false });
        }
    }

    pub(super) fn probed(
        &mut self,
        now: Mono,
        pid: u32,
        reading: &Reading,
        result: Result<(), ProbeFault>,
        out: &mut Vec<Action>,
    ) {
        let timing = self.spec.timing;
        match &mut self.stage {
            Stage::Loading { pid: current, probe, gate } if *current == pid => {
                let is_token_late = matches!(result, Err(ProbeFault::Completion(_)));
                gate.answers(now, matches!(result, Err(ProbeFault::Models(_) | ProbeFault::Completion(_))));
                match result {
                    Ok(()) => self.ready(now, pid, reading, "health, models and a completion", out),
                    // One that was adopted under load may not get to our token, and makes others' meanwhile.
                    Err(_) if is_token_late && reading.has_moved() => {
                        self.ready(now, pid, reading, "health and models, and makes tokens", out);
                    }
                    Err(fault) => {
                        *probe = Probe::Due(now + timing.probe_loading);
                        if self.was_ready {
                            self.reason = fault.to_string();
                        }
                    }
                }
            }
            Stage::Serving { pid: current, failures, probe, progress } if *current == pid => {
                progress.take(now, reading, self.own_in_flight);
                *probe = Probe::Due(now + timing.probe_serving);
                match result {
                    Ok(()) => {
                        *failures = 0;
                        if reading.is_completed
                            && let Some(doubt) = self.doubt.take()
                        {
                            decided(
                                out,
                                "leave the engine alone",
                                &format!("it made a token after: {doubt}"),
                            );
                            self.gpus.engine_proved(now);
                        }
                    }
                    // A late token says nothing of a busy engine; whether anything moves does.
                    Err(ProbeFault::Completion(fault)) => {
                        // Without counters nobody knows; the canaries go on.
                        let is_still =
                            reading.before.is_some() && reading.after.is_some() && !reading.has_moved();
                        if let Some(doubt) = self.doubt.take().filter(|_| is_still) {
                            let reason = format!("{doubt}, and the engine gives no token: {fault}");
                            self.refuse(&reason, out);
                            self.stop_engine(now, pid, After::Retry, true, &reason, out);
                            return;
                        }
                    }
                    Err(fault @ (ProbeFault::Health(_) | ProbeFault::Models(_))) => {
                        *failures += 1;
                        *probe = Probe::Due(now + timing.probe_loading);
                        if *failures >= timing.probe_failures_max {
                            let reason = format!("engine pid {pid} stopped answering: {fault}");
                            self.refuse(&reason, out);
                            let gate = Gate::begin(now, true);
                            let stage = Stage::Loading { pid, probe: Probe::Due(now), gate };
                            self.enter(now, stage, &reason, out);
                            return;
                        }
                    }
                }
                self.weigh_progress(now, pid, out);
            }
            // An answer about an engine that this stage is no longer about.
            Stage::Loading { .. }
            | Stage::Serving { .. }
            | Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
            | Stage::Starting { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Draining { .. }
            | Stage::Stopping { .. }
            | Stage::Proving { .. }
            | Stage::Exiting
            | Stage::Stopped { .. }
            | Stage::Failed { .. } => {}
        }
    }

    fn ready(&mut self, now: Mono, pid: u32, reading: &Reading, proof: &str, out: &mut Vec<Action>) {
        self.was_ready = true;
        self.doubt = None;
        out.push(Action::SetEdge(EdgeMode::Admit));
        let stage = Stage::Serving {
            pid,
            failures: 0,
            probe: Probe::Due(now + self.spec.timing.probe_serving),
            progress: Progress::begin(now, reading),
        };
        self.enter(now, stage, &format!("engine pid {pid} answered {proof}"), out);
    }

    /// Passes a stalled engine over, and kills one that stays stalled. The controller, which knows whether another
    /// replica serves, takes it out of the table; the edges let requests in that nobody else took.
    fn weigh_progress(&mut self, now: Mono, pid: u32, out: &mut Vec<Action>) {
        let timing = self.spec.timing;
        let Stage::Serving { progress, .. } = &mut self.stage else { return };
        let quiet = progress.quiet_for(now);
        let for_ms = millis(quiet);
        match progress.judge(now, timing.stall_suspect) {
            Some(true) => {
                let reason = format!("engine pid {pid} has work and nothing moved for {} s", quiet.as_secs());
                decided(out, "pass the engine over", &reason);
                self.reason.clone_from(&reason);
                out.push(Action::SetEdge(EdgeMode::Reluctant { reason }));
                out.push(Action::Tell(NodeEvent::EngineStalled { pid, for_ms, is_over: false }));
                out.push(Action::Heartbeat);
            }
            Some(false) => {
                self.reason = format!("engine pid {pid} moves again");
                decided(out, "take the engine back", &self.reason);
                out.push(Action::SetEdge(EdgeMode::Admit));
                out.push(Action::Tell(NodeEvent::EngineStalled { pid, for_ms, is_over: true }));
                out.push(Action::Heartbeat);
            }
            None if quiet >= timing.stall_kill => {
                let reason = format!("engine pid {pid} had work and nothing moved for {} s", quiet.as_secs());
                decided(out, "kill the engine", &reason);
                self.refuse(&reason, out);
                self.stop_engine(now, pid, After::Retry, true, &reason, out);
            }
            None => {}
        }
    }

    /// Waits and tries again, or gives up, and asks for a replacement when healing alone is not in sight.
    pub(super) fn fail(
        &mut self,
        now: Mono,
        phase: Phase,
        reason: String,
        heal: Heal,
        out: &mut Vec<Action>,
    ) {
        self.refuse(&reason, out);
        let (count, wait) = self.restarts.failed(now);
        if heal != Heal::Retry || count >= self.spec.timing.failures_max {
            if self.wants_replacement.is_none() {
                out.push(Action::Tell(NodeEvent::ReplacementWanted { reason: reason.clone() }));
            }
            self.wants_replacement = Some(reason.clone());
        }
        match heal {
            Heal::Retry => {
                self.restart_count += 1;
                let text = format!("{reason}; try {} in {:.1} s", count + 1, wait.as_secs_f32());
                decided(out, "wait and try again", &text);
                self.enter(now, Stage::Waiting { phase, until: now + wait }, &text, out);
            }
            Heal::Never | Heal::GpuFree | Heal::GpuSound => {
                decided(out, "give up", &reason);
                self.enter(now, Stage::Failed { heal }, &reason, out);
            }
        }
    }
}

pub(super) fn heal_of(may_heal: bool) -> Heal {
    if may_heal { Heal::Retry } else { Heal::Never }
}

/// What differs between the engine that runs and the one that is asked for.
fn drift(running: &Assignment, wanted: &Assignment) -> Option<String> {
    let parts = differences(running, wanted);
    (!parts.is_empty()).then(|| format!("drift: runs {}", parts.join("; ")))
}

/// One part each, as in `args --seed 1, wanted --seed 2`.
pub(super) fn differences(running: &Assignment, wanted: &Assignment) -> Vec<String> {
    let mut parts = Vec::new();
    let mut compare = |name: &str, running: String, wanted: String| {
        if running != wanted {
            parts.push(format!("{name} {running}, wanted {wanted}"));
        }
    };
    compare("deployment", running.deployment.to_string(), wanted.deployment.to_string());
    compare("model", running.model.name.clone(), wanted.model.name.clone());
    compare("model path", running.model.path.clone(), wanted.model.path.clone());
    compare("program", running.engine.program.clone(), wanted.engine.program.clone());
    compare("args", running.engine.args.join(" "), wanted.engine.args.join(" "));
    // Values may be secrets.
    if running.engine.env != wanted.engine.env {
        let names = running.engine.env.keys().chain(wanted.engine.env.keys());
        let differing: std::collections::BTreeSet<&String> =
            names.filter(|name| running.engine.env.get(*name) != wanted.engine.env.get(*name)).collect();
        parts.push(format!("environment {differing:?}"));
    }
    parts
}
