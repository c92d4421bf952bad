//! Where requests wait for a replica: as many as there are seats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cic_common::route::Class;

use super::admission::share;

/// Requests that wait at once, whatever for. Each holds a connection and its body; at 8 KiB a body they hold 4 MiB, at
/// the longest allowed one 4 GiB. Users' connections are bounded at 4096, so that some are left for those who do not
/// wait.
const SEATS_MAX: u32 = 512;

/// The seats of one edge. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats {
    taken: Arc<AtomicU32>,
}

/// One request that waits; its seat is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
}

impl Seats {
    /// A seat, or none when all that `class` may have are taken.
    pub(super) fn take(&self, class: Class) -> Option<Seat> {
        let next = |taken: u32| (taken < share(SEATS_MAX, class)).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(Seat { seats: self.clone() })
    }

    /// A seat for one who had one and looked elsewhere meanwhile: nobody who came later is to push it out. What is above
    /// the bound then are as many at most as looked elsewhere at once, and nobody new is seated before they are below it.
    pub(super) fn retake(&self) -> Seat {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Seat { seats: self.clone() }
    }

    pub(super) fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_there_are_seats_and_a_seat_is_free_again_when_left() {
        let seats = Seats::default();
        let mut taken: Vec<Seat> =
            std::iter::from_fn(|| seats.take(Class::LatencyCritical)).take(10_000).collect();
        assert_eq!(taken.len(), SEATS_MAX as usize);
        taken.pop();
        assert_eq!(seats.taken(), SEATS_MAX - 1);
        assert!(seats.take(Class::Standard).is_none(), "the last are for those whom a person waits for");
        let last = seats.take(Class::LatencyCritical);
        assert!(last.is_some() && seats.take(Class::LatencyCritical).is_none());
        let back = seats.retake();
        drop(last);
        assert!(seats.take(Class::LatencyCritical).is_none(), "who came back has it");
        drop(back);
        assert!(seats.take(Class::LatencyCritical).is_some());
    }
}
