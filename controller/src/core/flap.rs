//! A node that falls silent again and again is kept out of the routes for longer each time, while others work.
//!
//! It is alive and nothing is replaced for it: each return to the table would only cost its users another retry.

use std::collections::VecDeque;
use std::time::Duration;

use cic_common::time::Mono;

/// Silences within this span count.
const WINDOW: Duration = Duration::from_secs(600);

/// As many make it flap: two may be one fault and its repair.
const FLAPS_MIN: usize = 3;

/// Silences remembered; more change nothing.
const FLAPS_MAX: usize = 8;

/// Out of the routes after the first of them, doubled for each further one.
const HOLD: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(120);

/// The silences of one node that ended by its return.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    silent_at: VecDeque<Mono>,
    out_until: Option<Mono>,
}

impl Flaps {
    /// It fell silent.
    pub(super) fn fell_silent(&mut self, now: Mono) {
        if self.silent_at.len() == FLAPS_MAX {
            self.silent_at.pop_front();
        }
        self.silent_at.push_back(now);
        self.out_until = None;
    }

    /// It speaks again. Returns for how long it stays out, and after how many silences, where it flaps.
    pub(super) fn returned(&mut self, now: Mono) -> Option<(Duration, usize)> {
        self.silent_at.retain(|at| now.since(*at) <= WINDOW);
        let count = self.silent_at.len();
        let over = u32::try_from(count.checked_sub(FLAPS_MIN)?).unwrap_or(u32::MAX);
        let hold = HOLD.saturating_mul(2u32.saturating_pow(over)).min(HOLD_MAX);
        self.out_until = Some(now + hold);
        Some((hold, count))
    }

    /// Whether it is kept out for its flapping.
    pub(super) fn is_out(&self, now: Mono) -> bool {
        self.out_until.is_some_and(|until| now < until)
    }

    /// Whether the hold has just ended.
    pub(super) fn end_if_due(&mut self, now: Mono) -> bool {
        self.out_until.take_if(|until| now >= *until).is_some()
    }

    /// When that ends.
    pub(super) fn out_until(&self) -> Option<Mono> {
        self.out_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_silence_in_ten_minutes_is_held_and_each_further_one_twice_as_long() {
        let mut flaps = Flaps::default();
        let held: Vec<u64> = (0..8)
            .map(|round| {
                let now = Mono::from_millis(round * 30_000);
                flaps.fell_silent(now);
                flaps.returned(now + Duration::from_secs(5)).map_or(0, |(hold, _)| hold.as_secs())
            })
            .collect();
        assert_eq!(held, [0, 0, 10, 20, 40, 80, 120, 120]);
        assert!(flaps.is_out(Mono::from_millis(215_000 + 119_000)));
        assert!(!flaps.is_out(Mono::from_millis(215_000 + 120_000)));
    }

    #[test]
    fn silences_far_apart_are_no_flapping() {
        let mut flaps = Flaps::default();
        for round in 0..20 {
            let now = Mono::from_millis(round * 400_000);
            flaps.fell_silent(now);
            assert_eq!(flaps.returned(now + Duration::from_secs(5)), None);
        }
    }
}
