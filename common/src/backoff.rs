//! Waiting longer after each failure. The only file that names the `backoff` crate.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Each wait is up to this much shorter or longer than its turn, so that a fleet that lost its controller in
/// one moment does not come back in one moment.
const JITTER: f64 = 0.25;

/// Each turn is this much longer than the one before.
const GROWTH: f64 = 2.0;

/// A row of waits: `initial`, doubled each time up to `max`, ±25 %, without end.
#[derive(Debug)]
pub struct Backoff {
    row: ExponentialBackoff,
}

impl Backoff {
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        let mut row = ExponentialBackoff {
            initial_interval: initial,
            current_interval: initial,
            max_interval: max,
            multiplier: GROWTH,
            randomization_factor: JITTER,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        row.reset();
        Self { row }
    }

    /// How long to wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        self.row.next_backoff().unwrap_or(self.row.max_interval)
    }

    /// Starts again at `initial`: the last attempt succeeded.
    pub fn reset(&mut self) {
        self.row.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_maximum_and_start_again_after_a_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(200), ms(1000));
        for turn in [200, 400, 800, 1000, 1000, 1000] {
            let wait = backoff.next_wait();
            assert!(wait >= ms(turn * 3 / 4) && wait <= ms(turn * 5 / 4 + 1), "{wait:?} at turn {turn}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= ms(251));
    }

    #[test]
    fn two_nodes_do_not_wait_alike() {
        let first = || Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).next_wait();
        let waits: std::collections::BTreeSet<_> = (0..16).map(|_| first()).collect();
        assert!(waits.len() > 8);
    }
}
