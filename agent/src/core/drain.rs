//! Leaving: commands, notices and stops end in a drained edge, then in a stopped engine.

use std::time::Duration;

use cic_common::id::{OperationId, Term};
use cic_common::notice::Notice;
use cic_common::report::{Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome, NodeEvent};

use super::agent::{Agent, decided};
use super::checkpoint::{LastWord, Occasion};
use super::gate::Gate;
use super::notices::Heard;
use super::stage::{After, Heal, Next, Probe, Stage};
use super::{Action, EdgeMode};

/// Exit code that asks init for a restart (EX_TEMPFAIL of sysexits).
const EXIT_RESTART: u8 = 75;

impl Agent {
    pub(super) fn commanded(
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
        // A drain asked for once more changes nothing; a restart would be one more.
        let is_restart = matches!(command, Command::RestartAgent { .. });
        if is_restart && self.restarted_for.is_some_and(|last| (term, operation) <= last) {
            return decided(out, "do not restart again", &format!("operation {operation} was obeyed"));
        }
        match command {
            Command::Drain { within_ms, reason } => {
                let until = now + Duration::from_millis(within_ms);
                self.drain(now, until, After::Rest, false, &reason, out);
            }
            Command::RestartAgent { reason } => {
                self.restarted_for = Some((term, operation));
                out.push(Action::RememberRestart { term, operation });
                out.push(Action::Exit { code: EXIT_RESTART, reason });
            }
        }
    }

    pub(super) fn noticed(&mut self, now: Mono, notice: Notice, out: &mut Vec<Action>) {
        match self.notices.see(now, &notice) {
            Heard::Known => {}
            Heard::Full => decided(out, "drop a notice", "too many are open"),
            Heard::News => {
                let takes_the_node = notice.kind.takes_the_node();
                out.push(Action::Tell(NodeEvent::NoticeSeen { notice }));
                out.push(Action::Heartbeat);
                if takes_the_node {
                    self.checkpoint(now, Occasion::Notice, out);
                }
                if self.stage == (Stage::Stopped { by_notice: true }) {
                    self.acknowledge(now, out);
                }
            }
        }
    }

    pub(super) fn notice_lifted(&mut self, source: String, id: String, out: &mut Vec<Action>) {
        if self.notices.lift(&source, &id) {
            out.push(Action::Tell(NodeEvent::NoticeLifted { source, id }));
            out.push(Action::Heartbeat);
        }
    }

    /// Leaves when the soonest deadline asks for it, keeps to the timetable when that changes, and stays when no notice asks
    /// for it any more.
    pub(super) fn heed_notices(&mut self, now: Mono, out: &mut Vec<Action>) {
        let Some(leave) = self.notices.due(now) else { return self.stay(now, out) };
        match &mut self.stage {
            // Also later, when the sooner of two notices was lifted.
            Stage::Draining { until, hand_over, then: After::Leave, .. } => {
                if *until != leave.drain_until {
                    *until = leave.drain_until;
                    *hand_over = hand_over.map(|_| hand_over_at(now, *until, self.spec.timing.hand_over));
                }
            }
            Stage::Stopping { then: After::Rest | After::Leave | After::Exit, .. }
            | Stage::Proving { next: Next::Then(After::Rest | After::Leave | After::Exit), .. }
            | Stage::Stopped { .. }
            | Stage::Exiting => {}
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
            | Stage::Starting { .. }
            | Stage::Loading { .. }
            | Stage::Serving { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Draining { .. }
            | Stage::Stopping { .. }
            | Stage::Proving { .. }
            | Stage::Failed { .. } => {
                let reason = format!("{} notice", leave.kind);
                self.drain(now, leave.drain_until, After::Leave, false, &reason, out);
            }
        }
    }

    /// Takes back what was done for a notice alone.
    fn stay(&mut self, now: Mono, out: &mut Vec<Action>) {
        match self.stage.clone() {
            Stage::Draining { pid: Some(pid), then: After::Leave, .. } => {
                self.refuse("notice lifted; probing the engine", out);
                let gate = Gate::begin(now, self.was_ready);
                let stage = Stage::Loading { pid, probe: Probe::Due(now), gate };
                self.enter(now, stage, "notice lifted", out);
            }
            Stage::Draining { pid: None, then: After::Leave, .. } | Stage::Stopped { by_notice: true } => {
                self.again(now, "notice lifted", out);
            }
            Stage::Stopping { pid, then: After::Leave, until } => {
                let stage = Stage::Stopping { pid, then: After::Again, until };
                self.enter(now, stage, "notice lifted; the engine is being stopped", out);
            }
            Stage::Proving { ended_at, ask_at, until, next: Next::Then(After::Leave), .. } => {
                let (next, why) = (Next::Then(After::Again), "notice lifted".to_owned());
                let stage = Stage::Proving { ended_at, ask_at, until, next, why };
                self.enter(now, stage, "notice lifted; the engine has just ended", out);
            }
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
            | Stage::Starting { .. }
            | Stage::Loading { .. }
            | Stage::Serving { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Draining { .. }
            | Stage::Stopping { .. }
            | Stage::Proving { .. }
            | Stage::Exiting
            | Stage::Stopped { by_notice: false }
            | Stage::Failed { .. } => {}
        }
    }

    /// Nothing is left here that the cloud's act could break.
    fn acknowledge(&self, now: Mono, out: &mut Vec<Action>) {
        out.extend(
            self.notices.taking(now).map(|(source, id)| Action::AcknowledgeNotice {
                source: source.to_owned(),
                id: id.to_owned(),
            }),
        );
    }

    /// From nothing, as far as there is something to do.
    fn again(&mut self, now: Mono, why: &str, out: &mut Vec<Action>) {
        match (self.spec.role, &self.assignment) {
            (Role::Gateway, _) => {
                out.push(Action::SetEdge(EdgeMode::Admit));
                self.enter(now, Stage::Passing, why, out);
            }
            (Role::Replica, Some(_)) => self.begin(now, why, out),
            (Role::Replica, None) => {
                self.enter(now, Stage::Idle, &format!("{why}; waiting for an assignment"), out);
            }
        }
    }

    pub(super) fn stop_asked(&mut self, now: Mono, with_engine: bool, reason: String, out: &mut Vec<Action>) {
        // A machine that goes has set the time; else whoever stops the agent waits for it.
        let until =
            self.notices.due(now).map_or(now + self.spec.timing.stop_grace, |leave| leave.drain_until);
        self.drain(now, until, After::Exit, !with_engine, &reason, out);
    }

    /// Stops admitting requests; once the running ones are done or `until` has passed, goes on with `then`.
    /// A drain already under way is only ever brought forward.
    pub(super) fn drain(
        &mut self,
        now: Mono,
        until: Mono,
        then: After,
        keep_engine: bool,
        reason: &str,
        out: &mut Vec<Action>,
    ) {
        match &mut self.stage {
            Stage::Draining { until: current, hand_over, then: after, keep_engine: keep, .. } => {
                *current = until.min(*current);
                *hand_over =
                    hand_over.map(|at| at.min(hand_over_at(now, *current, self.spec.timing.hand_over)));
                if then == After::Exit {
                    *keep = keep_engine;
                }
                *after = (*after).max(then);
            }
            Stage::Stopping { then: after, .. } | Stage::Proving { next: Next::Then(after), .. } => {
                *after = (*after).max(then);
            }
            Stage::Proving { ended_at, ask_at, until, .. } => {
                let (ended_at, ask_at, until) = (*ended_at, *ask_at, *until);
                let (next, why) = (Next::Then(then), reason.to_owned());
                self.enter(now, Stage::Proving { ended_at, ask_at, until, next, why }, reason, out);
            }
            Stage::Exiting => {}
            Stage::Stopped { by_notice } => match then {
                After::Exit => self.after(now, then, out),
                After::Rest => *by_notice = false,
                After::Leave | After::Again | After::Retry => {}
            },
            Stage::Idle
            | Stage::Mounting { .. }
            | Stage::Fetching { .. }
            | Stage::Verifying { .. }
            | Stage::Checking { .. }
            | Stage::Starting { .. }
            | Stage::Loading { .. }
            | Stage::Serving { .. }
            | Stage::Passing
            | Stage::Waiting { .. }
            | Stage::Failed { .. } => {
                out.push(Action::SetEdge(EdgeMode::Drain { reason: reason.to_owned() }));
                decided(out, "drain", reason);
                let pid = self.stage.pid();
                let hand_over = Some(hand_over_at(now, until, self.spec.timing.hand_over));
                let stage = Stage::Draining {
                    pid,
                    until,
                    poll: now,
                    hand_over,
                    is_counted: false,
                    then,
                    keep_engine,
                    last_word: LastWord::ToBeWritten,
                };
                self.enter(now, stage, reason, out);
            }
        }
    }

    pub(super) fn after(&mut self, now: Mono, then: After, out: &mut Vec<Action>) {
        match then {
            After::Rest | After::Leave => {
                out.push(Action::Tell(NodeEvent::Farewell { reason: self.reason.clone() }));
                let reason = self.reason.clone();
                self.enter(now, Stage::Stopped { by_notice: then == After::Leave }, &reason, out);
                if then == After::Leave {
                    self.acknowledge(now, out);
                }
            }
            After::Again => {
                let reason = self.reason.clone();
                self.again(now, &reason, out);
            }
            After::Retry => {
                let reason = self.reason.clone();
                self.fail(now, Phase::Loading, reason, Heal::Retry, out);
            }
            After::Exit => {
                let reason = self.reason.clone();
                if self.notices.due(now).is_some() {
                    out.push(Action::Tell(NodeEvent::Farewell { reason: reason.clone() }));
                }
                self.enter(now, Stage::Stopped { by_notice: false }, &reason, out);
                out.push(Action::Exit { code: 0, reason });
            }
        }
    }
}

/// When streams are handed over: `before` the end of a drain, and not before its middle.
fn hand_over_at(now: Mono, until: Mono, before: Duration) -> Mono {
    until - before.min(until.since(now) / 2)
}
