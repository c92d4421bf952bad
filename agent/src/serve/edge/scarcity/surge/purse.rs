//! What may still be spent outside: a hard stop.
//!
//! What a request costs is known when it has ended, so that an estimate is set aside for it before it is sent. Spent
//! and set aside together never exceed the budget; only an answer longer than its estimate can, by the difference.

use std::time::Duration;

use cic_common::time::Mono;

/// The hour in which the budget counts, in buckets of a minute each.
const MINUTES: usize = 60;

/// A minute in milliseconds.
const MINUTE_MS: u64 = Duration::from_secs(60).as_millis() as u64;

#[derive(Debug, Default, Clone, Copy)]
struct Minute {
    number: u64,
    spent_microusd: u64,
}

/// Why nothing may be sent outside now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// As many requests are there as may be.
    Full { in_flight: u32 },
    /// The hour's budget is spent or set aside.
    Spent { spent_microusd: u64, aside_microusd: u64 },
}

/// The purse of one agent, without a clock.
#[derive(Debug)]
pub(super) struct Purse {
    budget_microusd: u64,
    in_flight_max: u32,
    minutes: [Minute; MINUTES],
    aside_microusd: u64,
    in_flight: u32,
}

impl Purse {
    pub(super) fn new(budget_microusd: u64, in_flight_max: u32) -> Self {
        let minutes = [Minute::default(); MINUTES];
        Self { budget_microusd, in_flight_max, minutes, aside_microusd: 0, in_flight: 0 }
    }

    /// Sets `estimate_microusd` aside for one request.
    ///
    /// # Errors
    /// The reason why it may not be sent; nothing was set aside then.
    pub(super) fn reserve(&mut self, now: Mono, estimate_microusd: u64) -> Result<(), Stop> {
        if self.in_flight >= self.in_flight_max {
            return Err(Stop::Full { in_flight: self.in_flight });
        }
        if estimate_microusd > self.left(now) {
            let (spent_microusd, aside_microusd) = (self.spent(now), self.aside_microusd);
            return Err(Stop::Spent { spent_microusd, aside_microusd });
        }
        self.aside_microusd += estimate_microusd;
        self.in_flight += 1;
        Ok(())
    }

    /// The request for which `estimate_microusd` was set aside has ended and cost `spent_microusd`.
    pub(super) fn settle(&mut self, now: Mono, estimate_microusd: u64, spent_microusd: u64) {
        self.aside_microusd = self.aside_microusd.saturating_sub(estimate_microusd);
        self.in_flight = self.in_flight.saturating_sub(1);
        let number = minute_of(now);
        // The remainder is below MINUTES.
        let minute = &mut self.minutes[usize::try_from(number % MINUTES as u64).unwrap_or(0)];
        if minute.number != number {
            *minute = Minute { number, spent_microusd: 0 };
        }
        minute.spent_microusd = minute.spent_microusd.saturating_add(spent_microusd);
    }

    /// Micro-dollars that may still be set aside.
    pub(super) fn left(&self, now: Mono) -> u64 {
        self.budget_microusd.saturating_sub(self.spent(now)).saturating_sub(self.aside_microusd)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn spent(&self, now: Mono) -> u64 {
        let current = minute_of(now);
        let live = self.minutes.iter().filter(|minute| minute.number + MINUTES as u64 > current);
        live.fold(0, |sum, minute| sum.saturating_add(minute.spent_microusd))
    }
}

fn minute_of(now: Mono) -> u64 {
    now.as_millis() / MINUTE_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(number: u64) -> Mono {
        Mono::from_millis(number * 60_000)
    }

    #[test]
    fn nothing_is_sent_beyond_the_budget_of_an_hour_and_an_hour_later_it_is_there_again() {
        let mut purse = Purse::new(1_000, 100);
        for number in 0..4 {
            assert_eq!(purse.reserve(minute(number), 300).is_ok(), number < 3, "request {number}");
        }
        let stop = Stop::Spent { spent_microusd: 0, aside_microusd: 900 };
        assert_eq!(purse.reserve(minute(4), 101), Err(stop));
        // Two cost less than was set aside for them, one more.
        for spent in [100, 100, 700] {
            purse.settle(minute(5), 300, spent);
        }
        assert_eq!((purse.left(minute(5)), purse.in_flight()), (100, 0));
        assert!(purse.reserve(minute(64), 101).is_err());
        assert!(purse.reserve(minute(65), 1_000).is_ok());
    }

    #[test]
    fn an_answer_dearer_than_its_estimate_stops_what_follows() {
        let mut purse = Purse::new(1_000, 100);
        assert!(purse.reserve(minute(0), 10).is_ok());
        purse.settle(minute(0), 10, 5_000);
        assert_eq!(purse.left(minute(0)), 0);
        assert!(purse.reserve(minute(59), 1).is_err());
    }

    #[test]
    fn no_more_are_outside_than_may_be() {
        let mut purse = Purse::new(1_000, 2);
        assert!(purse.reserve(minute(0), 1).is_ok() && purse.reserve(minute(0), 1).is_ok());
        assert_eq!(purse.reserve(minute(0), 1), Err(Stop::Full { in_flight: 2 }));
        purse.settle(minute(0), 1, 0);
        assert!(purse.reserve(minute(0), 1).is_ok());
    }
}
