//! How long to wait after a failure, and when to give up on healing alone.

use std::collections::VecDeque;
use std::time::Duration;

use cic_common::id::{Incarnation, NodeId};
use cic_common::time::Mono;

/// Waits after the first, second… failure within the window. Design table: 1, 5, 15, 45 … 300 s.
const WAITS_S: [u64; 6] = [1, 5, 15, 45, 135, 300];

/// The waits are spread by this share either way, so that nodes that failed together do not restart together.
const JITTER_PERCENT: u64 = 25;

/// The failures of the recent past.
#[derive(Debug)]
pub(super) struct Restarts {
    window: Duration,
    /// Moments of failures within `window`, oldest first; never longer than `WAITS_S`.
    failures: VecDeque<Mono>,
    seed: u64,
}

impl Restarts {
    /// `node` and `incarnation` seed the jitter: it differs between nodes and is the same in a replay.
    pub(super) fn new(window: Duration, node: &NodeId, incarnation: Incarnation) -> Self {
        let seed = node.as_str().bytes().fold(incarnation.0, |seed, byte| splitmix(seed ^ u64::from(byte)));
        Self { window, failures: VecDeque::new(), seed }
    }

    /// Whether no failure lies within the window any more.
    pub(super) fn is_calm(&self, now: Mono) -> bool {
        self.failures.back().is_none_or(|&at| now.since(at) > self.window)
    }

    /// Counts a failure. Returns how many the window now holds and how long to wait before the next try.
    pub(super) fn failed(&mut self, now: Mono) -> (u32, Duration) {
        while self.failures.front().is_some_and(|&at| now.since(at) > self.window) {
            self.failures.pop_front();
        }
        if self.failures.len() == WAITS_S.len() {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let count = self.failures.len();
        let wait_ms = WAITS_S[count - 1] * 1000;
        self.seed = splitmix(self.seed);
        let spread = wait_ms * JITTER_PERCENT / 100;
        let wait_ms = wait_ms - spread + self.seed % (2 * spread + 1);
        (u32::try_from(count).unwrap_or(u32::MAX), Duration::from_millis(wait_ms))
    }
}

/// One step of Sebastiano Vigna's splitmix64: enough to spread waits, and the same in every run.
fn splitmix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts(window_s: u64, node: &str) -> Restarts {
        Restarts::new(Duration::from_secs(window_s), &NodeId::new(node).unwrap(), Incarnation(1))
    }

    #[test]
    fn two_nodes_that_fail_together_do_not_wait_alike() {
        let [mut one, mut other] = ["n1", "n2"].map(|node| restarts(60, node));
        assert_ne!(one.failed(Mono::ZERO), other.failed(Mono::ZERO));
    }

    #[test]
    fn the_waits_grow_to_their_bound_and_stay_within_the_jitter() {
        let mut restarts = restarts(1800, "n1");
        for (i, base) in [1u64, 5, 15, 45, 135, 300, 300, 300].into_iter().enumerate() {
            let (_, wait) = restarts.failed(Mono::from_millis(i as u64));
            let (low, high) = (base * 750, base * 1250);
            assert!((low..=high).contains(&(wait.as_millis() as u64)), "{i}: {wait:?}");
        }
    }

    #[test]
    fn a_failure_older_than_the_window_is_forgotten() {
        let mut restarts = restarts(60, "n1");
        assert_eq!(restarts.failed(Mono::ZERO).0, 1);
        assert_eq!(restarts.failed(Mono::from_millis(59_000)).0, 2);
        assert_eq!(restarts.failed(Mono::from_millis(121_000)).0, 1);
    }
}
