//! Which reliable events of one incarnation have been taken.

use std::collections::BTreeSet;

/// Numbers remembered. An agent keeps at most 256 unacknowledged events, so a repetition is never further back.
const NUMBERS_MAX: usize = 1024;

/// A window over the numbers of events. They come nearly in order: a notice may overtake.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    taken: BTreeSet<u64>,
    /// All numbers up to here count as taken.
    floor: u64,
}

impl Sequence {
    pub(super) fn is_taken(&self, number: u64) -> bool {
        number <= self.floor || self.taken.contains(&number)
    }

    pub(super) fn take(&mut self, number: u64) {
        self.taken.insert(number);
        while self.taken.len() > NUMBERS_MAX
            || self.floor.checked_add(1).is_some_and(|next| self.taken.contains(&next))
        {
            if let Some(first) = self.taken.pop_first() {
                self.floor = self.floor.max(first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_taken_once_whatever_the_order() {
        let mut sequence = Sequence::default();
        for number in [3, 1, 2, 7] {
            assert!(!sequence.is_taken(number), "{number}");
            sequence.take(number);
            assert!(sequence.is_taken(number), "{number}");
        }
        assert!(!sequence.is_taken(5));
        assert_eq!(sequence.floor, 3);
    }

    #[test]
    fn the_window_is_bounded() {
        let mut sequence = Sequence::default();
        for number in (2..100_000).step_by(2) {
            sequence.take(number);
        }
        assert!(sequence.taken.len() <= NUMBERS_MAX);
        assert!(sequence.is_taken(4));
        sequence.take(u64::MAX);
    }
}
