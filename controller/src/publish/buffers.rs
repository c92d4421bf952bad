//! Memory that pieces are read into, used again once they are sent.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers that nothing lies in: as many as the push had pieces at once, until it ends. An allocator that gets buffers back from
/// other threads keeps some of them, and takes new ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty one.
    pub(super) fn take(&self) -> Vec<u8> {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_default()
    }

    /// What has been read into one that was taken.
    pub(super) fn filled(&self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { bytes, home: self.clone() })
    }
}

/// Goes back when the last that reads it is dropped.
struct Lent {
    bytes: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_nobody_reads_it() {
        let buffers = Buffers::default();
        let mut bytes = buffers.take();
        bytes.extend_from_slice(b"some of it");
        let place = bytes.as_ptr();
        let whole = buffers.filled(bytes);
        let part = whole.slice(5..);
        drop(whole);
        assert_eq!(buffers.take().capacity(), 0, "it is still read");
        assert_eq!(part, "of it");
        drop(part);
        let again = buffers.take();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
    }
}
