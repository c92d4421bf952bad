//! Whether a serving engine gets anywhere with its work.
//!
//! `/health` proves nothing: a real vLLM answers it with 200 while it is paused, draining or hung. What proves work
//! is a counter that moves. Which one does is learnt from the readiness completion; where none does, or none can be
//! read, a canary is asked for instead.

use std::time::Duration;

use cic_common::time::Mono;

use super::event::{Reading, Work};

/// Readings without the counter after which it is given up. One scrape may fail beside a busy engine.
const UNREAD_MAX: u32 = 3;

/// What shows progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gauge {
    Iterations,
    GenerationTokens,
    PromptTokens,
    /// No counter: only an answered completion.
    Canary,
}

impl Gauge {
    /// In order of preference: a step of the engine moves even when it only prefills.
    const COUNTERS: [Self; 3] = [Self::Iterations, Self::GenerationTokens, Self::PromptTokens];

    fn value(self, work: &Work) -> Option<u64> {
        match self {
            Self::Iterations => work.iterations,
            Self::GenerationTokens => work.generation_tokens,
            Self::PromptTokens => work.prompt_tokens,
            Self::Canary => None,
        }
    }

    /// The first counter that moved from one reading to the other.
    fn moved(before: &Work, after: &Work) -> Option<Self> {
        Self::COUNTERS.into_iter().find(|gauge| {
            gauge.value(before).zip(gauge.value(after)).is_some_and(|(before, after)| before != after)
        })
    }
}

impl Reading {
    /// Whether tokens were made between the two readings of a deep probe.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.before.zip(self.after).is_some_and(|(before, after)| Gauge::moved(&before, &after).is_some())
    }
}

/// The progress of one engine since it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    gauge: Gauge,
    value: Option<u64>,
    /// The last moment it moved, or had nothing to do.
    moved_at: Mono,
    unread_count: u32,
    is_stalled: bool,
    /// By its own word it has nothing to do.
    is_idle: bool,
    canary_at: Mono,
}

impl Progress {
    /// From the readings around the readiness completion.
    pub(super) fn begin(now: Mono, reading: &Reading) -> Self {
        let pair = reading.before.zip(reading.after);
        let gauge = pair.and_then(|(before, after)| Gauge::moved(&before, &after)).unwrap_or(Gauge::Canary);
        let value = reading.after.and_then(|work| gauge.value(&work));
        Self {
            gauge,
            value,
            moved_at: now,
            unread_count: 0,
            is_stalled: false,
            is_idle: false,
            canary_at: now,
        }
    }

    /// Takes in what a probe read. `in_flight` requests are held in the engine by the edge, whatever it says of itself: a
    /// vLLM counts a request as running only when its core has answered for the first time.
    pub(super) fn take(&mut self, now: Mono, reading: &Reading, in_flight: u32) {
        if reading.is_completed {
            self.moved_at = now;
        }
        if self.gauge == Gauge::Canary {
            // A counter that moves is better than a canary, once there is one again.
            let pair = reading.before.zip(reading.after);
            let Some(gauge) = pair.and_then(|(before, after)| Gauge::moved(&before, &after)) else { return };
            (self.gauge, self.moved_at, self.unread_count) = (gauge, now, 0);
        }
        let read = reading.after.and_then(|work| Some((work, self.gauge.value(&work)?)));
        let Some((work, value)) = read else {
            self.unread_count += 1;
            if self.unread_count >= UNREAD_MAX {
                (self.gauge, self.moved_at, self.canary_at) = (Gauge::Canary, now, now);
            }
            return;
        };
        self.unread_count = 0;
        self.is_idle = work.running + work.waiting == 0;
        if self.value != Some(value) || (self.is_idle && in_flight == 0) {
            self.moved_at = now;
        }
        self.value = Some(value);
    }

    /// Whether a token must be asked for, which it then counts as asked: where no counter shows progress, and where the
    /// engine says that it is idle while the edge waits for it (or for a slow client).
    pub(super) fn is_canary_due(&mut self, now: Mono, every: Duration, in_flight: u32) -> bool {
        let is_contradicted = self.is_idle && in_flight > 0 && self.quiet_for(now) >= every;
        let is_wanted = self.gauge == Gauge::Canary || is_contradicted;
        let is_due = is_wanted && now >= self.canary_at;
        if is_due {
            self.canary_at = now + every;
        }
        is_due
    }

    pub(super) fn quiet_for(&self, now: Mono) -> Duration {
        now.since(self.moved_at)
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Compares with the span after which it counts as stalled. `Some` when that changed.
    pub(super) fn judge(&mut self, now: Mono, suspect_after: Duration) -> Option<bool> {
        let is_stalled = self.quiet_for(now) >= suspect_after;
        (std::mem::replace(&mut self.is_stalled, is_stalled) != is_stalled).then_some(is_stalled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUSPECT: Duration = Duration::from_secs(30);

    fn at(s: u64) -> Mono {
        Mono::from_millis(s * 1000)
    }

    fn work(running: u64, iterations: u64) -> Work {
        Work { running, iterations: Some(iterations), ..Work::default() }
    }

    fn reading(after: Work) -> Reading {
        Reading { after: Some(after), ..Reading::default() }
    }

    fn ready(before: Work, after: Work) -> Reading {
        Reading { before: Some(before), after: Some(after), is_completed: true }
    }

    #[test]
    fn the_counter_is_the_first_that_moved_during_the_readiness_completion() {
        let tokens = |generated, prompt| Work {
            iterations: Some(4),
            generation_tokens: Some(generated),
            prompt_tokens: Some(prompt),
            ..Work::default()
        };
        for (reading, gauge) in [
            (ready(work(0, 1), work(0, 2)), Gauge::Iterations),
            (ready(tokens(0, 0), tokens(1, 1)), Gauge::GenerationTokens),
            (ready(tokens(0, 0), tokens(0, 1)), Gauge::PromptTokens),
            (ready(work(0, 1), work(0, 1)), Gauge::Canary),
            (Reading { is_completed: true, ..Reading::default() }, Gauge::Canary),
        ] {
            assert_eq!(Progress::begin(at(0), &reading).gauge, gauge, "{reading:?}");
        }
    }

    #[test]
    fn work_that_does_not_move_is_a_stall_after_its_span_and_not_before() {
        let mut progress = Progress::begin(at(0), &ready(work(0, 1), work(0, 2)));
        progress.take(at(1), &reading(work(1, 3)), 0);
        progress.take(at(30), &reading(work(1, 3)), 0);
        assert_eq!(progress.judge(at(30), SUSPECT), None);
        assert_eq!(progress.judge(at(31), SUSPECT), Some(true));
        progress.take(at(40), &reading(work(1, 4)), 0);
        assert_eq!(progress.judge(at(40), SUSPECT), Some(false));
    }

    #[test]
    fn an_idle_engine_never_stalls() {
        let mut progress = Progress::begin(at(0), &ready(work(0, 1), work(0, 2)));
        for second in (0..3600).step_by(2) {
            progress.take(at(second), &reading(work(0, 2)), 0);
            assert_eq!(progress.judge(at(second), SUSPECT), None);
        }
    }

    #[test]
    fn requests_that_only_wait_are_work_too() {
        let mut progress = Progress::begin(at(0), &ready(work(0, 1), work(0, 2)));
        let waiting = Work { waiting: 3, ..work(0, 2) };
        progress.take(at(30), &reading(waiting), 0);
        assert_eq!(progress.judge(at(30), SUSPECT), Some(true));
    }

    #[test]
    fn a_counter_that_starts_anew_has_moved() {
        let mut progress = Progress::begin(at(0), &ready(work(0, 1), work(0, 900)));
        progress.take(at(29), &reading(work(1, 3)), 0);
        assert_eq!(progress.judge(at(58), SUSPECT), None);
    }

    #[test]
    fn metrics_that_cannot_be_read_any_more_are_replaced_by_a_canary() {
        let mut progress = Progress::begin(at(0), &ready(work(0, 1), work(0, 2)));
        for second in [1, 2, 3] {
            assert!(!progress.is_canary_due(at(second), Duration::from_secs(10), 0));
            progress.take(at(second), &Reading::default(), 0);
        }
        assert!(progress.is_canary_due(at(3), Duration::from_secs(10), 0));
        assert!(!progress.is_canary_due(at(12), Duration::from_secs(10), 0));
        assert!(progress.is_canary_due(at(13), Duration::from_secs(10), 0));
        assert_eq!(progress.judge(at(32), SUSPECT), None);
        assert_eq!(progress.judge(at(33), SUSPECT), Some(true), "no canary came back");
        progress.take(at(34), &Reading { is_completed: true, ..Reading::default() }, 0);
        assert_eq!(progress.judge(at(34), SUSPECT), Some(false));
    }

    #[test]
    fn an_engine_that_hangs_on_its_first_step_says_it_is_idle_and_is_asked_for_a_token() {
        let mut progress = Progress::begin(at(0), &ready(work(0, 1), work(0, 2)));
        let every = Duration::from_secs(10);
        for second in [2, 4, 6, 8] {
            progress.take(at(second), &reading(work(0, 2)), 1);
            assert!(!progress.is_canary_due(at(second), every, 1), "{second}");
        }
        progress.take(at(10), &reading(work(0, 2)), 1);
        assert!(progress.is_canary_due(at(10), every, 1));
        // A client that reads slowly holds its request too: the token tells the two apart.
        let answered = Reading { is_completed: true, ..ready(work(0, 2), work(0, 3)) };
        progress.take(at(11), &answered, 1);
        assert_eq!(progress.judge(at(40), SUSPECT), None);
        assert_eq!(progress.judge(at(41), SUSPECT), Some(true), "no second token came");
    }

    #[test]
    fn a_counter_that_moves_again_takes_the_canarys_place() {
        let mut progress = Progress::begin(at(0), &Reading { is_completed: true, ..Reading::default() });
        assert_eq!(progress.gauge, Gauge::Canary);
        progress.take(at(1), &ready(work(0, 4), work(0, 5)), 0);
        assert_eq!(progress.gauge, Gauge::Iterations);
    }
}
