//! The dead-man switch: a VM that nobody counts on any more ends itself, so that it is not paid for ever.
//!
//! ```text
//! Watching <-> Warned -> Leaving -> Ended
//! ```
//! Two spans are added up, over restarts of the agent too: how long no controller has given it a task, and how long there
//! was neither a controller's word nor a request. A clock that jumps, a process that was stopped and a VM that slept add
//! no more than [`LOOK_MAX`] at once: whoever wakes up late gives the others time to speak first.

use std::time::Duration;

use cic_common::report::Role;
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

use super::Action;
use super::agent::{Agent, decided};
use super::stage::{After, Stage};

/// The most that counts between two looks. The core is called every second while its process runs.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// From the decision to the power's end: nothing runs that would have to finish, the last checkpoint takes 2 s, an engine
/// that hangs is left to the end of the VM.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);

/// The edge has nothing to drain; this is for a request that comes in the very moment.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

/// A command that did not end the VM is run again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The longest between two notes to the state directory; a shorter limit is noted in eighths.
const NOTE_EVERY: Duration = Duration::from_secs(30);
const NOTE_SHARE: u32 = 8;

/// When a VM ends itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadmanSpec {
    /// Without a task from any controller, ever.
    pub unconfirmed: Duration,
    /// Without a controller's word and without a request.
    pub idle: Duration,
}

impl Default for DeadmanSpec {
    fn default() -> Self {
        Self { unconfirmed: Duration::from_secs(3600), idle: Duration::from_secs(4 * 3600) }
    }
}

/// What the next run of the agent goes on from.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadmanMemo {
    /// A controller gave it a task once.
    pub is_confirmed: bool,
    pub unconfirmed_for: Duration,
    pub quiet_for: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Watching,
    /// Half of a limit has passed.
    Warned,
    /// It says farewell; at this moment the power goes whatever is still to do.
    Leaving {
        until: Mono,
        reason: String,
    },
    /// The command was given, and is given again at this moment.
    Ended {
        again_at: Mono,
        reason: String,
    },
}

/// The switch of one VM.
#[derive(Debug)]
pub(super) struct Deadman {
    spec: DeadmanSpec,
    memo: DeadmanMemo,
    /// As the next run would find it; `None` before the first note of this run.
    noted: Option<DeadmanMemo>,
    looked_at: Option<Mono>,
    state: State,
}

impl Deadman {
    pub(super) fn new(spec: DeadmanSpec) -> Self {
        let memo = DeadmanMemo::default();
        Self { spec, memo, noted: None, looked_at: None, state: State::Watching }
    }

    /// Goes on from what an earlier run noted, this long ago. That run may have been in contact until its end, else it
    /// would have noted more a step later: no more than a step is added.
    pub(super) fn restore(&mut self, memo: DeadmanMemo, ago: Duration) {
        let gap = ago.min(self.step());
        self.memo = DeadmanMemo { quiet_for: memo.quiet_for + gap, ..memo };
        if !memo.is_confirmed {
            self.memo.unconfirmed_for += gap;
        }
    }

    /// What one note may differ from the next by.
    fn step(&self) -> Duration {
        (self.spec.idle.min(self.spec.unconfirmed) / NOTE_SHARE).min(NOTE_EVERY)
    }

    /// A controller gave the node a task.
    pub(super) fn confirm(&mut self) {
        self.memo.is_confirmed = true;
        self.memo.unconfirmed_for = Duration::ZERO;
    }

    /// A controller spoke, or a request came.
    pub(super) fn contact(&mut self) {
        self.memo.quiet_for = Duration::ZERO;
    }

    /// How long until the power goes if all stays as it is.
    fn left(&self) -> Duration {
        let idle = self.spec.idle.saturating_sub(self.memo.quiet_for);
        let unconfirmed = self.spec.unconfirmed.saturating_sub(self.memo.unconfirmed_for);
        if self.memo.is_confirmed { idle } else { idle.min(unconfirmed) }
    }

    /// Whether a limit, or this share of one, has passed, and which.
    fn passed(&self, share: u32) -> Option<String> {
        let DeadmanMemo { is_confirmed, unconfirmed_for, quiet_for } = self.memo;
        if !is_confirmed && unconfirmed_for >= self.spec.unconfirmed / share {
            let text = format!("no controller gave this VM a task within {} s", unconfirmed_for.as_secs());
            return Some(text);
        }
        (quiet_for >= self.spec.idle / share)
            .then(|| format!("neither a controller's word nor a request for {} s", quiet_for.as_secs()))
    }

    /// Adds what has passed since the last look.
    fn pass(&mut self, now: Mono, is_busy: bool) {
        let span = self.looked_at.map_or(Duration::ZERO, |at| now.since(at)).min(LOOK_MAX);
        self.looked_at = Some(now);
        self.memo.quiet_for = if is_busy { Duration::ZERO } else { self.memo.quiet_for + span };
        if !self.memo.is_confirmed {
            self.memo.unconfirmed_for += span;
        }
    }

    /// Written down at the first look, so that the shortest run counts, and when it has changed enough to matter.
    fn note(&mut self, out: &mut Vec<Action>) {
        let (step, memo) = (self.step(), self.memo);
        let differs = |one: Duration, other: Duration| one.abs_diff(other) >= step;
        let is_news = self.noted.is_none_or(|noted| {
            memo.is_confirmed != noted.is_confirmed
                || differs(memo.unconfirmed_for, noted.unconfirmed_for)
                || differs(memo.quiet_for, noted.quiet_for)
        });
        if is_news {
            self.noted = Some(memo);
            out.push(Action::RememberDeadman(self.memo));
        }
    }

    /// Moves on. Returns why the node is to leave, in the moment that it is.
    fn look(&mut self, now: Mono, is_busy: bool, has_left: bool, out: &mut Vec<Action>) -> Option<String> {
        self.pass(now, is_busy);
        self.note(out);
        let due = self.passed(1).filter(|_| !is_busy);
        match (&self.state, due) {
            (State::Watching | State::Warned, Some(reason)) => {
                let reason = format!("dead-man switch: {reason}");
                self.state = State::Leaving { until: now + LEAVE_WITHIN, reason: reason.clone() };
                return Some(reason);
            }
            (State::Watching, None) => {
                if let Some(why) = self.passed(2) {
                    self.state = State::Warned;
                    let what = format!("this VM powers itself off in {} s", self.left().as_secs());
                    out.push(Action::Warn { what, why });
                }
            }
            (State::Warned, None) => {
                if self.passed(2).is_none() {
                    self.state = State::Watching;
                    decided(out, "do not power off", "a controller spoke, or a request came");
                }
            }
            (State::Leaving { until: at, reason } | State::Ended { again_at: at, reason }, _) => {
                let is_due = now >= *at || (has_left && matches!(self.state, State::Leaving { .. }));
                if is_due && !is_busy {
                    let reason = reason.clone();
                    out.push(Action::PowerOff { reason: reason.clone() });
                    self.state = State::Ended { again_at: now + AGAIN_AFTER, reason };
                }
            }
        }
        None
    }
}

impl Agent {
    /// A gateway gets no task: a controller's word is all that it can be confirmed by.
    pub(super) fn contacted(&mut self, by_controller: bool) {
        let Some(deadman) = &mut self.deadman else { return };
        deadman.contact();
        if by_controller && self.spec.role == Role::Gateway {
            deadman.confirm();
        }
    }

    /// Ends the VM when nobody counts on it any more. Never while a request is in flight.
    pub(super) fn heed_silence(&mut self, now: Mono, out: &mut Vec<Action>) {
        let is_busy = self.edge.in_flight > 0 || self.edge.waiting > 0 || self.own_in_flight > 0;
        let has_left = matches!(self.stage, Stage::Stopped { .. });
        let Some(deadman) = &mut self.deadman else { return };
        if let Some(reason) = deadman.look(now, is_busy, has_left, out) {
            self.drain(now, now + DRAIN_WITHIN, After::Rest, false, &reason, out);
        }
    }

    /// How long until this VM powers itself off if nobody speaks; `None` where it does not do that.
    #[must_use]
    pub fn power_off_in(&self) -> Option<Duration> {
        self.deadman.as_ref().map(Deadman::left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: DeadmanSpec =
        DeadmanSpec { unconfirmed: Duration::from_secs(3600), idle: Duration::from_secs(14_400) };

    /// Looks once a second for `secs`; returns what was pushed, and the second in which it was told to leave.
    fn pass(deadman: &mut Deadman, from_s: u64, secs: u64, is_busy: bool) -> (Vec<Action>, Option<u64>) {
        let (mut out, mut left_at) = (Vec::new(), None);
        for second in from_s..=from_s + secs {
            let left = deadman.look(Mono::from_millis(second * 1000), is_busy, false, &mut out);
            left_at = left_at.or(left.map(|_| second));
        }
        (out, left_at)
    }

    fn warnings(out: &[Action]) -> usize {
        out.iter().filter(|action| matches!(action, Action::Warn { .. })).count()
    }

    #[test]
    fn a_vm_leaves_when_a_limit_has_passed_and_not_a_second_before() {
        for (is_confirmed, contact_every, leaves_at) in [
            (false, None, Some(3600)),
            // A controller that speaks and gives no task does not confirm it.
            (false, Some(10), Some(3600)),
            (true, None, Some(14_400)),
            (true, Some(14_399), None),
        ] {
            let mut deadman = Deadman::new(SPEC);
            if is_confirmed {
                deadman.confirm();
            }
            let (mut out, mut left_at) = (Vec::new(), None);
            for second in 0..=40_000 {
                if contact_every.is_some_and(|every: u64| second % every == 0) {
                    deadman.contact();
                }
                let left = deadman.look(Mono::from_millis(second * 1000), false, false, &mut out);
                left_at = left_at.or(left.map(|_| second));
            }
            assert_eq!(left_at, leaves_at, "{is_confirmed} {contact_every:?}");
        }
    }

    #[test]
    fn it_warns_at_half_time_and_takes_it_back() {
        let mut deadman = Deadman::new(SPEC);
        deadman.confirm();
        let (out, _) = pass(&mut deadman, 0, 7199, false);
        assert_eq!(warnings(&out), 0);
        let (out, _) = pass(&mut deadman, 7200, 0, false);
        assert_eq!((warnings(&out), deadman.left()), (1, Duration::from_secs(7200)));
        deadman.contact();
        let (out, left_at) = pass(&mut deadman, 7201, 7000, false);
        assert!(out.iter().any(|action| matches!(action, Action::Decided { .. })), "{out:?}");
        assert_eq!(left_at, None);
    }

    #[test]
    fn a_request_in_flight_holds_it_for_ever_and_the_time_begins_anew_after_it() {
        let mut deadman = Deadman::new(SPEC);
        deadman.confirm();
        assert_eq!(pass(&mut deadman, 0, 50_000, true).1, None);
        assert_eq!(pass(&mut deadman, 50_001, 14_429, false).1, Some(64_400));
        // One that comes in the last moment holds the power too, and what follows it does not turn back.
        let (out, _) = pass(&mut deadman, 64_431, 1000, true);
        assert!(!out.iter().any(|action| matches!(action, Action::PowerOff { .. })), "{out:?}");
        let (out, _) = pass(&mut deadman, 65_432, 0, false);
        assert!(matches!(out.last(), Some(Action::PowerOff { .. })), "{out:?}");
    }

    #[test]
    fn a_clock_that_jumps_adds_a_minute_and_triggers_nothing() {
        let mut deadman = Deadman::new(SPEC);
        deadman.confirm();
        let mut out = Vec::new();
        for hours in [0, 5, 500, 501] {
            let left = deadman.look(Mono::from_millis(hours * 3_600_000), false, false, &mut out);
            assert_eq!(left, None, "{hours}");
        }
        assert_eq!((warnings(&out), deadman.left()), (0, SPEC.idle - 3 * LOOK_MAX));
    }

    #[test]
    fn runs_that_crash_again_and_again_add_up_however_short() {
        // Each run lasts so long and is followed by the next so long after its last note.
        for (run_s, runs_expected) in [(40, 85..=90), (5, 600..=600), (0, 3600..=3600)] {
            let mut noted = None;
            let mut runs = 0;
            let is_over = |noted: &mut Option<(DeadmanMemo, u64)>| {
                let mut deadman = Deadman::new(SPEC);
                if let Some((memo, at_s)) = *noted {
                    deadman.restore(memo, Duration::from_secs(run_s + 1 - at_s));
                }
                for second in 0..=run_s {
                    let (out, left_at) = pass(&mut deadman, second, 0, false);
                    if let Some(Action::RememberDeadman(memo)) = out.first() {
                        *noted = Some((*memo, second));
                    }
                    if left_at.is_some() {
                        return true;
                    }
                }
                false
            };
            while !is_over(&mut noted) {
                runs += 1;
            }
            assert!(runs_expected.contains(&runs), "{runs} runs of {run_s} s");
        }
    }

    #[test]
    fn what_was_noted_long_ago_adds_one_step_only() {
        let mut deadman = Deadman::new(SPEC);
        deadman
            .restore(DeadmanMemo { is_confirmed: true, ..Default::default() }, Duration::from_secs(90_000));
        assert_eq!(deadman.left(), SPEC.idle - NOTE_EVERY);
    }

    #[test]
    fn what_changes_all_the_time_is_not_noted_all_the_time() {
        let mut deadman = Deadman::new(SPEC);
        deadman.confirm();
        let mut out = Vec::new();
        for second in 0..1000 {
            deadman.contact();
            deadman.look(Mono::from_millis(second * 1000), false, false, &mut out);
        }
        assert_eq!(out.len(), 1, "that it is confirmed: {out:?}");
        let (out, _) = pass(&mut deadman, 1001, 300, false);
        assert_eq!(out.len(), 10, "every 30 s: {out:?}");
    }

    #[test]
    fn a_command_that_did_not_end_the_vm_is_given_again() {
        let mut deadman = Deadman::new(SPEC);
        let (out, left_at) = pass(&mut deadman, 0, 3600 + 200, false);
        assert_eq!(left_at, Some(3600));
        let offs = out.iter().filter(|action| matches!(action, Action::PowerOff { .. })).count();
        assert_eq!(offs, 3, "at 60, 120 and 180 s");
    }
}
