//! Leaving: commands, notices and stops end in a drained edge, then in a stopped engine.

use std::time::Duration;

use cic_common::id::{OperationId, Term};
use cic_common::notice::{Notice, NoticeKind};
use cic_common::report::{Phase, Role};
use cic_common::time::Mono;
use cic_common::wire::message::{Command, CommandOutcome, NodeEvent};

use super::agent::{Agent, OpenNotice, decided, millis};
use super::gate::Gate;
use super::stage::{After, Heal, Next, Probe, Stage};
use super::{Action, EdgeMode};

/// Notices remembered at once. A cloud has a handful of sources, each with few open notices.
const NOTICES_MAX: usize = 16;

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
        match command {
            Command::Drain { within_ms, reason } => {
                let until = now + Duration::from_millis(within_ms);
                self.drain(now, until, After::Rest, false, &reason, out);
            }
            Command::RestartAgent { reason } => out.push(Action::Exit { code: EXIT_RESTART, reason }),
        }
    }

    pub(super) fn noticed(
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
            self.drain(now, deadline - reserve, After::Leave, false, &format!("{kind} notice"), out);
        }
    }

    pub(super) fn notice_lifted(&mut self, now: Mono, source: String, id: String, out: &mut Vec<Action>) {
        let Some(lifted) = self.notices.remove(&(source, id)) else { return };
        let still_taken = self.notices.values().any(|notice| notice.kind.takes_the_node());
        if !lifted.kind.takes_the_node() || still_taken {
            return;
        }
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
        let until = now + self.spec.timing.stop_grace;
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
                *hand_over = hand_over.map(|at| at.min(*current - self.spec.timing.hand_over));
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
                let hand_over = Some(until - self.spec.timing.hand_over);
                let stage = Stage::Draining {
                    pid,
                    until,
                    poll: now,
                    hand_over,
                    is_counted: false,
                    then,
                    keep_engine,
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
                self.enter(now, Stage::Stopped { by_notice: false }, &reason, out);
                out.push(Action::Exit { code: 0, reason });
            }
        }
    }

    pub(super) fn notice(&self, now: Mono) -> Option<Notice> {
        let first =
            self.notices.iter().min_by_key(|(_, notice)| (!notice.kind.takes_the_node(), notice.deadline))?;
        let ((source, id), notice) = first;
        Some(Notice {
            kind: notice.kind,
            source: source.clone(),
            id: id.clone(),
            left_ms: millis(notice.deadline.since(now)),
        })
    }
}
