//! What is lacking, in the order of the files, until somebody takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::target::Target;

/// Runs that are taken from in turn: into one file only one writes at a time.
const FILES_AT_ONCE: usize = 4;

/// Pieces of one file that follow one another.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) target: Arc<Target>,
    pub(super) first: u64,
    pub(super) count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Runs(Mutex<VecDeque<Run>>);

impl Runs {
    /// These pieces of a file, in their order, behind what is there.
    pub(super) fn add(&self, target: &Arc<Target>, pieces: impl IntoIterator<Item = u64>) {
        let mut runs = self.lock();
        for piece in pieces {
            match runs.back_mut() {
                Some(last) if Arc::ptr_eq(&last.target, target) && last.first + last.count == piece => {
                    last.count += 1
                }
                _ => runs.push_back(Run { target: Arc::clone(target), first: piece, count: 1 }),
            }
        }
    }

    /// The next pieces, `count_max` at most; `None` when none is left.
    pub(super) fn take(&self, count_max: u64) -> Option<Run> {
        let mut runs = self.lock();
        let mut front = runs.pop_front()?;
        if front.count <= count_max {
            return Some(front);
        }
        let taken = Run { count: count_max, ..front.clone() };
        front.first += count_max;
        front.count -= count_max;
        let behind = runs.len().min(FILES_AT_ONCE - 1);
        runs.insert(behind, front);
        Some(taken)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
