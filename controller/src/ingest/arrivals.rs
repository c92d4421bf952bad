//! How long heartbeats wait from their arrival to the step of the core that takes them.

use std::collections::VecDeque;

use cic_common::time::{Clock, Mono};

use crate::histogram::Histogram;

/// Batches under way to the core whose arrivals are kept. The core's queue is longer, and then its own figures tell.
const BATCHES_MAX: usize = 64;

/// The moments of arrival, kept beside the heartbeats: a heartbeat itself is what the agent said, and nothing else.
#[derive(Debug)]
pub(super) struct Arrivals {
    clock: Clock,
    /// Of the batch that is being gathered.
    waiting: Vec<Mono>,
    /// Of each batch that the core has not taken yet, the oldest first.
    handed_on: VecDeque<Vec<Mono>>,
    /// Batches whose arrivals were given up, oldest, and are still to be taken.
    given_up: usize,
}

impl Default for Arrivals {
    fn default() -> Self {
        let (waiting, handed_on) = (Vec::new(), VecDeque::new());
        Self { clock: Clock::start(), waiting, handed_on, given_up: 0 }
    }
}

impl Arrivals {
    /// A heartbeat came that waits for the next batch.
    pub(super) fn came(&mut self) {
        self.waiting.push(self.clock.now());
    }

    /// The batch is in the core's queue.
    pub(super) fn hand_on(&mut self) {
        let next = Vec::with_capacity(self.waiting.len());
        self.handed_on.push_back(std::mem::replace(&mut self.waiting, next));
        if self.handed_on.len() > BATCHES_MAX {
            self.handed_on.pop_front();
            self.given_up += 1;
        }
    }

    /// The core has taken the oldest batch.
    pub(super) fn taken(&mut self, spans: &Histogram) {
        if self.given_up > 0 {
            self.given_up -= 1;
            return;
        }
        let now = self.clock.now();
        for at in self.handed_on.pop_front().into_iter().flatten() {
            spans.add(now.since(at));
        }
    }

    #[cfg(test)]
    fn kept(&self) -> usize {
        self.handed_on.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_arrival_is_counted_with_the_batch_it_left_in() {
        let (mut arrivals, spans) = (Arrivals::default(), Histogram::default());
        arrivals.came();
        arrivals.came();
        arrivals.hand_on();
        arrivals.came();
        arrivals.hand_on();
        arrivals.taken(&spans);
        assert_eq!(count(&spans), 2);
        arrivals.taken(&spans);
        assert_eq!(count(&spans), 3);
    }

    #[test]
    fn a_core_that_takes_nothing_costs_bounded_memory_and_no_wrong_span() {
        let (mut arrivals, spans) = (Arrivals::default(), Histogram::default());
        for _ in 0..BATCHES_MAX + 3 {
            arrivals.came();
            arrivals.hand_on();
        }
        assert_eq!(arrivals.kept(), BATCHES_MAX);
        for _ in 0..3 {
            arrivals.taken(&spans);
        }
        assert_eq!(count(&spans), 0, "these were given up");
        arrivals.taken(&spans);
        assert_eq!(count(&spans), 1);
    }

    fn count(spans: &Histogram) -> u64 {
        spans.cumulative().last().map_or(0, |(_, count)| *count)
    }
}
