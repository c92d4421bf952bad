//! How many requests a key may make: so many a minute, so many at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::time::Mono;

const MINUTE: Duration = Duration::from_secs(60);

/// When one of as many requests as are allowed at once will have ended is not known; a client asks again soon.
const RETRY_WHEN_ONE_ENDS: Duration = Duration::from_secs(1);

/// The bounds of a key; none unless set.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// A minute's worth may come at once, after that they are evenly spread.
    pub(super) per_minute: Option<u32>,
    pub(super) in_flight_max: Option<u32>,
}

/// What a key has used of its bounds. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance {
    used: Arc<Mutex<Used>>,
}

#[derive(Debug, Default)]
struct Used {
    /// The time up to which the rate is used (GCRA: ATM Forum, Traffic Management 4.0, 4.4.2).
    rate_used_until: Mono,
    in_flight: u32,
}

/// One request, counted in while alive.
#[derive(Debug)]
pub(super) struct Spent {
    allowance: Allowance,
}

/// Why a request is one too many, and how long until it would not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    PerMinute { retry_after: Duration },
    InFlight { retry_after: Duration },
}

impl Allowance {
    /// Takes one request out of `bounds`.
    pub(super) fn take(&self, bounds: Bounds, now: Mono) -> Result<Spent, Exceeded> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if bounds.in_flight_max.is_some_and(|most| used.in_flight >= most) {
            return Err(Exceeded::InFlight { retry_after: RETRY_WHEN_ONE_ENDS });
        }
        if let Some(per_minute) = bounds.per_minute {
            let until = used.rate_used_until.max(now) + MINUTE / per_minute.max(1);
            let ahead = until.since(now);
            if ahead > MINUTE {
                return Err(Exceeded::PerMinute { retry_after: ahead - MINUTE });
            }
            used.rate_used_until = until;
        }
        used.in_flight += 1;
        drop(used);
        Ok(Spent { allowance: self.clone() })
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        let mut used = self.allowance.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.in_flight = used.in_flight.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_s_worth_may_come_at_once_and_is_earned_back_evenly() {
        let bounds = Bounds { per_minute: Some(6), in_flight_max: None };
        let allowance = Allowance::default();
        let late = |s| Some(Exceeded::PerMinute { retry_after: Duration::from_secs(s) });
        for (at_s, exceeded) in [
            (0, None),
            (0, None),
            (0, None),
            (0, None),
            (0, None),
            (0, None),
            (0, late(10)),
            // A refusal costs nothing.
            (4, late(6)),
            (10, None),
            (10, late(10)),
            (1000, None),
            (1000, None),
        ] {
            let taken = allowance.take(bounds, Mono::from_millis(at_s * 1000));
            assert_eq!(taken.err(), exceeded, "at {at_s} s");
        }
    }

    #[test]
    fn as_many_at_once_as_are_allowed_and_a_place_is_free_when_one_ends() {
        let bounds = Bounds { per_minute: None, in_flight_max: Some(2) };
        let allowance = Allowance::default();
        let take = || allowance.take(bounds, Mono::ZERO);
        let (first, _second) = (take().unwrap(), take().unwrap());
        assert_eq!(take().err(), Some(Exceeded::InFlight { retry_after: RETRY_WHEN_ONE_ENDS }));
        drop(first);
        assert!(take().is_ok());
    }

    #[test]
    fn without_bounds_nothing_is_refused() {
        let allowance = Allowance::default();
        let held: Vec<_> =
            (0..1000).map(|_| allowance.take(Bounds::default(), Mono::ZERO).unwrap()).collect();
        assert_eq!(allowance.used.lock().unwrap().in_flight, 1000);
        drop(held);
        assert_eq!(allowance.used.lock().unwrap().in_flight, 0);
    }
}
