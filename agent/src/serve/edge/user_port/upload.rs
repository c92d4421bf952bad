//! A request's body, read whole: bounded in bytes, in time, and together with all others.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Denial;
use super::limits::{BODY_GAP_MAX, HELD_BODIES_BYTES_MAX};
use super::visit::Visit;
use crate::serve::edge::answer::Refusal;

/// Room is counted in blocks of this, so that a body of usual size takes one.
const BLOCK_BYTES: usize = 16 << 10;

/// Memory that is taken at once on a client's word about the length of its body.
const BELIEVED_BYTES_MAX: usize = 256 << 10;

/// Where the bodies of all requests count that are held. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(HELD_BODIES_BYTES_MAX / BLOCK_BYTES)))
    }
}

/// A body that was read, counted in while any clone is alive.
#[derive(Debug, Clone)]
pub(in crate::serve::edge) struct Upload {
    pub(in crate::serve::edge) bytes: Bytes,
    _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl Upload {
    /// One that was not sent by a user and counts nowhere.
    pub(in crate::serve::edge) fn of(bytes: Bytes) -> Self {
        Self { bytes, _room: None }
    }

    /// Reads `body` to its end.
    pub(in crate::serve::edge) async fn read(
        body: Incoming,
        bytes_max: usize,
        visit: &Visit,
    ) -> Result<Self, Refusal> {
        let mut collecting = pin!(collect(body, bytes_max, visit));
        // Most bodies came with their head: no clock is read for them.
        if let Poll::Ready(read) = futures_util::poll!(collecting.as_mut()) {
            return read;
        }
        timeout(visit.body_within(), collecting).await.unwrap_or(Err(Refusal::BodyLate))
    }
}

async fn collect(mut body: Incoming, bytes_max: usize, visit: &Visit) -> Result<Upload, Refusal> {
    let too_long = Err(Refusal::BodyTooLong { bytes_max });
    let stated = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if stated > bytes_max {
        // Not a byte of it is asked for.
        return too_long;
    }
    let mut held = Held::default();
    let mut taken = None;
    while !body.is_end_stream() {
        let next = match futures_util::poll!(body.frame()) {
            Poll::Ready(next) => next,
            Poll::Pending => match timeout(BODY_GAP_MAX, body.frame()).await {
                Ok(next) => next,
                Err(_) => return Err(Refusal::BodyLate),
            },
        };
        let frame = match next {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Err(Refusal::BodyBroken),
            None => break,
        };
        // Trailers mean nothing here.
        let Ok(data) = frame.into_data() else { continue };
        visit.brought(data.len());
        if held.len() + data.len() > bytes_max {
            return too_long;
        }
        if let Some(room) = visit.room() {
            room.grow(&mut taken, held.len() + data.len())?;
        }
        held.push(data, stated);
    }
    Ok(Upload { bytes: held.into_bytes(), _room: taken.map(Arc::new) })
}

impl Room {
    /// Makes `taken` large enough for `bytes`.
    fn grow(&self, taken: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Refusal> {
        let before = taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(BLOCK_BYTES).saturating_sub(before);
        if more == 0 {
            return Ok(());
        }
        let full = Refusal::Denied(Denial::BodiesTooMany);
        let more = u32::try_from(more).map_err(|_| full.clone())?;
        let more = Arc::clone(&self.0).try_acquire_many_owned(more).map_err(|_| full)?;
        match taken {
            Some(taken) => taken.merge(more),
            None => *taken = Some(more),
        }
        Ok(())
    }
}

/// What has come. One piece stays as it is; more are copied together as they come, since a piece of one byte may
/// hold on to all of the buffer that it came in.
#[derive(Debug, Default)]
struct Held {
    only: Bytes,
    all: BytesMut,
}

impl Held {
    fn len(&self) -> usize {
        self.only.len() + self.all.len()
    }

    fn push(&mut self, data: Bytes, stated: usize) {
        if self.len() == 0 {
            self.only = data;
            return;
        }
        if !self.only.is_empty() {
            self.all.reserve(stated.min(BELIEVED_BYTES_MAX).max(self.only.len() + data.len()));
            self.all.extend_from_slice(&std::mem::take(&mut self.only));
        }
        self.all.extend_from_slice(&data);
    }

    fn into_bytes(self) -> Bytes {
        if self.all.is_empty() { self.only } else { self.all.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_one_and_hold_no_more_than_themselves() {
        for (pieces, whole) in [(vec![], ""), (vec!["ab"], "ab"), (vec!["", "ab", "c", "", "d"], "abcd")] {
            let mut held = Held::default();
            for piece in pieces {
                held.push(Bytes::from_static(piece.as_bytes()), usize::MAX);
                assert!(held.all.capacity() <= BELIEVED_BYTES_MAX);
            }
            assert_eq!(held.into_bytes(), whole);
        }
    }

    #[test]
    fn bodies_together_take_no_more_than_there_is_and_give_it_back() {
        let room = Room(Arc::new(Semaphore::new(3)));
        let (mut one, mut other) = (None, None);
        assert!(room.grow(&mut one, 1).is_ok());
        assert!(room.grow(&mut one, BLOCK_BYTES).is_ok());
        assert!(room.grow(&mut other, BLOCK_BYTES + 1).is_ok());
        assert_eq!(room.grow(&mut one, BLOCK_BYTES + 1), Err(Refusal::Denied(Denial::BodiesTooMany)));
        drop(other);
        assert!(room.grow(&mut one, 3 * BLOCK_BYTES).is_ok());
    }
}
