//! What three witnesses said of one node, and when.
//!
//! Only arrival times at this controller count; a node's own clock is never looked at.

use std::time::Duration;

use cic_common::time::Mono;

use super::belief::{Cloud, Freshness};
use super::event::PollFault;
use super::rhythm::Rhythm;
use super::timing::Timing;

/// Reason to think that the push path is dead before its silence is long enough to tell by itself: the poll
/// connection broke, or the control stream ended. A heartbeat clears it if it answers the challenge, or if it
/// comes too late to have been under way before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Doubt {
    since: Mono,
    challenge: u64,
}

/// The push path: heartbeats and the control stream.
#[derive(Debug, Default)]
pub(super) struct Push {
    rhythm: Rhythm,
    heard_at: Option<Mono>,
    doubt: Option<Doubt>,
    /// Known from before this controller started, and not heard within the settle time.
    is_missed: bool,
}

impl Push {
    pub(super) fn heard(&mut self, now: Mono, challenge_answered: u64, timing: &Timing) {
        self.heard_at = Some(now);
        self.rhythm.heard(now, timing);
        self.is_missed = false;
        self.doubt = self.doubt.filter(|doubt| {
            challenge_answered < doubt.challenge && now.since(doubt.since) < timing.challenge
        });
    }

    /// Starts to doubt the path; `challenge` is the number that a live node will answer with.
    pub(super) fn doubt(&mut self, now: Mono, challenge: u64) {
        self.doubt.get_or_insert(Doubt { since: now, challenge });
    }

    pub(super) fn reconnected(&mut self, now: Mono) {
        self.rhythm.begin_anew();
        (self.heard_at, self.doubt, self.is_missed) = (Some(now), None, false);
    }

    pub(super) fn miss(&mut self) {
        self.is_missed = self.heard_at.is_none();
    }

    /// Our own stall is not the node's silence: its clock starts again.
    pub(super) fn forgive(&mut self, now: Mono) {
        if self.heard_at.is_some() {
            self.heard_at = Some(now);
        }
        self.rhythm.begin_anew();
        self.doubt = None;
    }

    pub(super) fn freshness(&self, now: Mono, timing: &Timing) -> Freshness {
        match (self.heard_at, self.doubt) {
            (None, _) if self.is_missed => Freshness::Stale,
            (None, _) => Freshness::Never,
            (Some(_), Some(doubt)) if now.since(doubt.since) >= timing.challenge => Freshness::Stale,
            (Some(at), _) if now.since(at) > self.rhythm.suspect_after(timing) => Freshness::Stale,
            (Some(_), _) => Freshness::Fresh,
        }
    }

    pub(super) fn has_spoken(&self) -> bool {
        self.heard_at.is_some()
    }

    /// When the freshness may next change by time alone.
    pub(super) fn turns_at(&self, now: Mono, timing: &Timing) -> Option<Mono> {
        let silence =
            self.heard_at.map(|at| at + self.rhythm.suspect_after(timing) + Duration::from_millis(1));
        let doubt = self.doubt.map(|doubt| doubt.since + timing.challenge);
        [silence, doubt].into_iter().flatten().filter(|&at| at > now).min()
    }

    /// What the poll that is to confirm its silence is given.
    pub(super) fn confirm_within(&self, trip: Duration) -> Duration {
        self.rhythm.confirm_within(trip)
    }

    pub(super) fn text(&self, now: Mono) -> String {
        let lost = self.rhythm.loss() * 100.0;
        let lossy = if lost >= 1.0 { format!(", {lost:.0} % of its heartbeats lost") } else { String::new() };
        match (self.heard_at, self.doubt) {
            (None, _) if self.is_missed => "no push since this controller started".to_owned(),
            (None, _) => "no push yet".to_owned(),
            (Some(at), None) => format!("push {} ago{lossy}", span(now.since(at))),
            (Some(at), Some(doubt)) => format!(
                "push {} ago{lossy}, challenged {} ago without answer",
                span(now.since(at)),
                span(now.since(doubt.since))
            ),
        }
    }
}

/// The poll path: our own requests to the node.
#[derive(Debug, Default)]
pub(super) struct Poll {
    answered_at: Option<Mono>,
    failed_at: Option<Mono>,
    fault: Option<PollFault>,
    /// Routine failures since the last answer.
    failures: u32,
    /// An urgent poll failed since the last answer.
    is_condemned: bool,
    asked: Option<Asked>,
    next_at: Option<Mono>,
    /// A smoothed round trip over the warm connection; zero before the first.
    trip: Duration,
}

/// Gain of a new round trip in the smoothed one (RFC 6298).
const TRIP_GAIN: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    urgent: bool,
}

impl Poll {
    pub(super) fn answered(&mut self, now: Mono, trip: Duration) {
        let trip = match self.trip {
            Duration::ZERO => trip,
            smoothed => (smoothed * (TRIP_GAIN - 1) + trip) / TRIP_GAIN,
        };
        let (asked, next_at) = (self.asked, self.next_at);
        *self = Self { answered_at: Some(now), asked, next_at, trip, ..Self::default() };
    }

    /// Why the last one failed, if it did.
    pub(super) fn fault(&self) -> Option<PollFault> {
        self.fault
    }

    pub(super) fn trip(&self) -> Duration {
        self.trip
    }

    pub(super) fn failed(&mut self, now: Mono, urgent: bool, fault: PollFault) {
        self.failed_at = Some(now);
        self.fault = Some(fault);
        self.failures = self.failures.saturating_add(1);
        self.is_condemned |= urgent;
    }

    /// Records that a poll leaves now. False when one of at least this urgency is already under way.
    pub(super) fn ask(&mut self, urgent: bool) -> bool {
        if self.asked.is_some_and(|asked| asked.urgent || !urgent) {
            return false;
        }
        self.asked = Some(Asked { urgent });
        self.next_at = None;
        true
    }

    /// Records that the outcome of a poll came in.
    pub(super) fn came_back(&mut self, urgent: bool) {
        if self.asked.is_none_or(|asked| asked.urgent == urgent) {
            self.asked = None;
        }
    }

    pub(super) fn schedule(&mut self, at: Mono) {
        self.next_at = Some(at);
    }

    pub(super) fn next_at(&self) -> Option<Mono> {
        self.next_at
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn forgive(&mut self) {
        self.failures = 0;
        self.is_condemned = false;
    }

    pub(super) fn freshness(&self, timing: &Timing) -> Freshness {
        if self.is_condemned || self.failures >= timing.poll_failures_max {
            Freshness::Stale
        } else if self.answered_at.is_some() {
            Freshness::Fresh
        } else {
            Freshness::Never
        }
    }

    pub(super) fn text(&self, now: Mono) -> String {
        match (self.answered_at, self.failed_at, self.fault) {
            (_, Some(at), Some(fault)) => format!("poll failed {} ago ({fault})", span(now.since(at))),
            (Some(at), _, _) => format!("poll answered {} ago", span(now.since(at))),
            (None, _, _) => "no poll yet".to_owned(),
        }
    }
}

/// The provider's word.
#[derive(Debug)]
pub(super) struct CloudWord {
    word: Cloud,
    said_at: Mono,
    /// It was in a listing once, so its absence from a later one means something.
    was_listed: bool,
}

impl Default for CloudWord {
    fn default() -> Self {
        Self { word: Cloud::Unknown, said_at: Mono::ZERO, was_listed: false }
    }
}

impl CloudWord {
    pub(super) fn said(&mut self, now: Mono, word: Cloud) {
        self.was_listed |= matches!(word, Cloud::Running | Cloud::Stopped);
        self.word = word;
        self.said_at = now;
    }

    pub(super) fn said_at(&self) -> Mono {
        self.said_at
    }

    pub(super) fn was_listed(&self) -> bool {
        self.was_listed
    }

    pub(super) fn word(&self, now: Mono, timing: &Timing) -> Cloud {
        if now.since(self.said_at) > timing.list_fresh { Cloud::Unknown } else { self.word }
    }

    pub(super) fn text(&self, now: Mono, timing: &Timing) -> String {
        let age = span(now.since(self.said_at));
        match self.word(now, timing) {
            Cloud::Running => format!("cloud said running {age} ago"),
            Cloud::Stopped => format!("cloud said stopped {age} ago"),
            Cloud::Absent => format!("cloud did not list it {age} ago"),
            Cloud::Unknown => "cloud not asked".to_owned(),
            Cloud::Failing => format!("cloud API failing, {age} ago"),
        }
    }
}

/// A span as people read it: `0.4 s`, `12 s`, `3 min`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs_f32();
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.0} min", seconds / 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_millis(ms)
    }

    #[test]
    fn a_push_is_stale_only_after_its_span() {
        let timing = Timing::default();
        let mut push = Push::default();
        assert_eq!(push.freshness(at(99_000), &timing), Freshness::Never);
        push.heard(at(1000), 0, &timing);
        assert_eq!(push.freshness(at(3150), &timing), Freshness::Fresh);
        assert_eq!(push.freshness(at(3151), &timing), Freshness::Stale);
        assert_eq!(push.turns_at(at(1000), &timing), Some(at(3151)));
    }

    #[test]
    fn a_challenge_unanswered_makes_a_push_stale_at_once() {
        let timing = Timing::default();
        let mut push = Push::default();
        push.heard(at(1000), 0, &timing);
        push.doubt(at(1100), 7);
        assert_eq!(push.freshness(at(1599), &timing), Freshness::Fresh);
        assert_eq!(push.freshness(at(1600), &timing), Freshness::Stale);
    }

    #[test]
    fn a_heartbeat_under_way_before_the_challenge_answers_nothing() {
        let timing = Timing::default();
        let mut push = Push::default();
        push.heard(at(1000), 0, &timing);
        push.doubt(at(1100), 7);
        push.heard(at(1110), 6, &timing);
        assert_eq!(push.freshness(at(1600), &timing), Freshness::Stale);
        push.heard(at(1650), 6, &timing);
        assert_eq!(push.freshness(at(1700), &timing), Freshness::Fresh, "too late to be a leftover");
    }

    #[test]
    fn the_answer_to_the_challenge_clears_the_doubt() {
        let timing = Timing::default();
        let mut push = Push::default();
        push.heard(at(1000), 0, &timing);
        push.doubt(at(1100), 7);
        push.heard(at(1105), 7, &timing);
        assert_eq!(push.freshness(at(2000), &timing), Freshness::Fresh);
    }

    #[test]
    fn routine_polls_need_three_failures_and_an_urgent_one_needs_one() {
        let timing = Timing::default();
        let mut poll = Poll::default();
        poll.answered(at(0), Duration::ZERO);
        poll.failed(at(1), false, PollFault::Timeout);
        poll.failed(at(2), false, PollFault::Timeout);
        assert_eq!(poll.freshness(&timing), Freshness::Fresh);
        poll.failed(at(3), false, PollFault::Timeout);
        assert_eq!(poll.freshness(&timing), Freshness::Stale);
        poll.answered(at(4), Duration::ZERO);
        assert_eq!(poll.freshness(&timing), Freshness::Fresh);
        poll.failed(at(5), true, PollFault::Refused);
        assert_eq!(poll.freshness(&timing), Freshness::Stale);
    }

    #[test]
    fn an_old_listing_says_nothing() {
        let timing = Timing::default();
        let mut cloud = CloudWord::default();
        cloud.said(at(0), Cloud::Running);
        assert_eq!(cloud.word(at(75_000), &timing), Cloud::Running);
        assert_eq!(cloud.word(at(75_001), &timing), Cloud::Unknown);
    }
}
