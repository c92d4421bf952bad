//! How much all kept streams of an edge may take together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes kept for all streams of one edge. A stream of 8,000 tokens with its request takes about 100 KiB.
const KEPT_BYTES_MAX: usize = 256 << 20;

/// What is kept by all streams of an edge. Clones share it.
#[derive(Debug, Clone, Default)]
pub(in crate::serve::edge) struct Rooms {
    taken: Arc<AtomicUsize>,
}

/// One stream's part; given back when dropped.
#[derive(Debug)]
pub(super) struct Room {
    rooms: Rooms,
    bytes: usize,
}

impl Rooms {
    pub(super) fn empty(&self) -> Room {
        Room { rooms: self.clone(), bytes: 0 }
    }

    pub(in crate::serve::edge) fn taken_bytes(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Room {
    /// Takes so much in all; tells whether there was room for it.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return true };
        let before = self.rooms.taken.fetch_add(more, Ordering::Relaxed);
        self.bytes = bytes;
        before + more <= KEPT_BYTES_MAX
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.rooms.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stream_took_is_given_back_with_it() {
        let rooms = Rooms::default();
        let (mut one, mut other) = (rooms.empty(), rooms.empty());
        assert!(one.grow_to(KEPT_BYTES_MAX / 2) && one.grow_to(1));
        assert!(!other.grow_to(KEPT_BYTES_MAX));
        drop(other);
        assert_eq!(rooms.taken_bytes(), KEPT_BYTES_MAX / 2);
        drop(one);
        assert_eq!(rooms.taken_bytes(), 0);
    }
}
