//! What will happen, in order of time and, within one moment, of scheduling.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use cic_common::time::Mono;

/// A queue of things to come. Two things of one moment leave in the order they entered, so that a seed always
/// plays the same.
#[derive(Debug)]
pub struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    sequence: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), sequence: 0 }
    }
}

impl<T> Queue<T> {
    pub fn push(&mut self, at: Mono, item: T) {
        self.sequence += 1;
        self.heap.push(Entry { at, sequence: self.sequence, item });
    }

    pub fn pop(&mut self) -> Option<(Mono, T)> {
        self.heap.pop().map(|entry| (entry.at, entry.item))
    }

    #[must_use]
    pub fn next_at(&self) -> Option<Mono> {
        self.heap.peek().map(|entry| entry.at)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[derive(Debug)]
struct Entry<T> {
    at: Mono,
    sequence: u64,
    item: T,
}

// Reversed: `BinaryHeap` gives the greatest first and the earliest is wanted.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_leaves_first_and_one_moment_keeps_its_order() {
        let mut queue = Queue::default();
        for (ms, item) in [(5, 'c'), (1, 'a'), (5, 'd'), (3, 'b'), (5, 'e')] {
            queue.push(Mono::from_millis(ms), item);
        }
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        assert_eq!(order, "abcde");
    }
}
