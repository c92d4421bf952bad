//! The phi-accrual detector (Hayashibara and others, 2004) at a threshold of 8, as Akka ships it: a normal distribution
//! of the last intervals, at least 100 ms wide, and a pause of 3 s accepted.
//!
//! Source: `akka.cluster.failure-detector` (threshold 8.0, max-sample-size 1000, min-std-deviation 100 ms,
//! acceptable-heartbeat-pause 3 s, heartbeat-interval 1 s). The window is an exponential one of the same memory here.

use std::time::Duration;

use cic_common::time::Mono;

use super::episode::Episode;
use super::verdict::Verdict;

const SAMPLES: f64 = 1000.0;
const DEVIATION_MIN_S: f64 = 0.1;
const PAUSE_S: f64 = 3.0;

/// Deviations past the mean at which the tail of a normal distribution is 10^-8.
const EIGHT: f64 = 5.612;

/// What was learned of one link's intervals, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phi {
    mean: f64,
    variance: f64,
}

impl Default for Phi {
    fn default() -> Self {
        Self { mean: 1.0, variance: 0.0625 }
    }
}

impl Phi {
    pub(super) fn heard(&mut self, gap_s: f64) {
        let off = gap_s - self.mean;
        self.mean += off / SAMPLES;
        self.variance += (off * off - self.variance) / SAMPLES;
    }

    /// As many intervals of a second.
    pub(super) fn calm(&mut self, count: f64) {
        let kept = (1.0 - 1.0 / SAMPLES).powf(count);
        let off = 1.0 - self.mean;
        self.mean += off * (1.0 - kept);
        self.variance = self.variance * kept + off * off * kept * (1.0 - kept);
    }

    /// The silence at which phi reaches 8.
    pub(super) fn down_after(&self) -> Duration {
        let deviation = self.variance.sqrt().max(DEVIATION_MIN_S);
        Duration::from_secs_f64(self.mean + PAUSE_S + EIGHT * deviation)
    }
}

pub(super) fn judge(episode: &Episode) -> Vec<Verdict> {
    (0..episode.nodes.len()).map(|node| Verdict::at_once(down_at(episode, node))).collect()
}

fn down_at(episode: &Episode, node: usize) -> Option<Mono> {
    let mut phi = Phi::default();
    let mut last: Option<Mono> = None;
    // What arrives while the process stands still is read when it goes on.
    for at in episode.beats(node).filter_map(|(_, arrives)| arrives).map(|at| episode.served(at)) {
        if let Some(last) = last {
            let due = episode.served(last + phi.down_after());
            if due < at {
                return Some(due);
            }
            phi.heard(at.since(last).as_secs_f64());
        }
        last = Some(at);
    }
    let due = episode.served(last? + phi.down_after());
    (due < episode.end()).then_some(due)
}
