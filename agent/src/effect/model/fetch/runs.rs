//! What is lacking, until somebody takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::target::Target;

/// Runs that are taken from in turn: into one file only one thread writes at a time, and four keep a disk busy (measured).
const IN_TURN: usize = 4;

/// Nobody takes more than this part of what is left: twice as many as take, so that the slow do not hold the end of it while the
/// fast have nothing to do.
const SHARES: u64 = 24;

/// Pieces of one file that follow one another.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) target: Arc<Target>,
    pub(super) first: u64,
    pub(super) count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<Row>);

#[derive(Debug, Default)]
struct Row {
    runs: VecDeque<Run>,
    /// Pieces of all of them.
    left: u64,
}

impl Runs {
    /// These pieces of a file, in their order, behind what is there.
    pub(super) fn add(&self, target: &Arc<Target>, pieces: impl IntoIterator<Item = u64>) {
        let mut row = self.lock();
        for piece in pieces {
            row.left += 1;
            match row.runs.back_mut() {
                Some(last) if Arc::ptr_eq(&last.target, target) && last.first + last.count == piece => {
                    last.count += 1
                }
                _ => row.runs.push_back(Run { target: Arc::clone(target), first: piece, count: 1 }),
            }
        }
    }

    /// The next pieces, `count_max` at most, and fewer where few are left; `None` when none is.
    pub(super) fn take(&self, count_max: u64) -> Option<Run> {
        let mut row = self.lock();
        let mut front = row.runs.pop_front()?;
        let count = count_max.min(row.left / SHARES).max(1).min(front.count);
        row.left -= count;
        let taken = Run { count, ..front.clone() };
        if front.count > count {
            front.first += count;
            front.count -= count;
            let behind = row.runs.len().min(IN_TURN - 1);
            row.runs.insert(behind, front);
        }
        Some(taken)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().runs.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
