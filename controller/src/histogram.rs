//! Counts of spans in fixed buckets: two atomic additions a span, whoever reads it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in nanoseconds: six a decade from 1 µs to 10 s, so that a quantile read from them is
/// at most half as much again as the true one.
pub const BOUNDS_NS: [u64; 43] = bounds();

const DECADE: [u64; 6] = [1_000, 1_500, 2_000, 3_000, 5_000, 7_000];

const fn bounds() -> [u64; 43] {
    let mut bounds = [10_000_000_000; 43];
    let (mut place, mut factor) = (0, 1);
    while place < 42 {
        bounds[place] = DECADE[place % 6] * factor;
        place += 1;
        if place % 6 == 0 {
            factor *= 10;
        }
    }
    bounds
}

/// Spans since the start. The last bucket holds what is longer than every bound.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BOUNDS_NS.len() + 1], sum_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub fn add(&self, span: Duration) {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let place = BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Each bound in nanoseconds with the count of spans up to it; `None` is the count of all.
    pub fn cumulative(&self) -> Vec<(Option<u64>, u64)> {
        let bounds = BOUNDS_NS.into_iter().map(Some).chain([None]);
        let mut sum = 0;
        bounds
            .zip(&self.counts)
            .map(|(bound, count)| {
                sum += count.load(Ordering::Relaxed);
                (bound, sum)
            })
            .collect()
    }

    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_by_half_or_more_and_end_at_ten_seconds() {
        for pair in BOUNDS_NS.windows(2) {
            let ratio = pair[1] as f64 / pair[0] as f64;
            assert!((1.3..=1.7).contains(&ratio), "{pair:?}");
        }
        assert_eq!((BOUNDS_NS[0], BOUNDS_NS[6], BOUNDS_NS[42]), (1_000, 10_000, 10_000_000_000));
    }

    #[test]
    fn a_span_counts_from_its_bound_on() {
        let histogram = Histogram::default();
        for micros in [0, 1, 2, 90_000_000] {
            histogram.add(Duration::from_micros(micros));
        }
        let counts = histogram.cumulative();
        assert_eq!(counts[0], (Some(1_000), 2));
        assert_eq!(counts[1], (Some(1_500), 2));
        assert_eq!(counts[2], (Some(2_000), 3));
        assert_eq!(counts[42], (Some(10_000_000_000), 3));
        assert_eq!(counts[43], (None, 4));
        assert_eq!(histogram.sum_ns(), 90_000_003_000);
    }
}
