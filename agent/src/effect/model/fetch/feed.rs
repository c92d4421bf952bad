//! Bytes of a file as they come, hashed and written while more of them are on their way.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use cic_common::model::tree::{PieceHasher, piece_span};

use super::target::{Tally, Target};

/// Half of what a core's own cache holds at the least: hashed, and then written, while it is in there from being received.
const HOT_BYTES: usize = 128 << 10;

/// Takes the bytes of consecutive pieces. What is written counts once the piece has its hash; until then whatever is there is
/// looked at again by the next fetch, as anything in the staging folder.
pub(super) struct Feed<'a> {
    target: &'a Arc<Target>,
    tally: &'a Tally,
    /// The one that comes, and the first that does not.
    pub(super) piece: u64,
    end: u64,
    /// Of what has come of the piece.
    hasher: PieceHasher,
    /// Where the next byte goes, and how many the piece lacks.
    at: u64,
    left: u64,
}

impl<'a> Feed<'a> {
    pub(super) fn new(target: &'a Arc<Target>, tally: &'a Tally, pieces: Range<u64>) -> Self {
        let (piece, end, size) = (pieces.start, pieces.end, target.wanted.size);
        let (at, left) = piece_span(piece, size);
        Self { target, tally, piece, end, hasher: PieceHasher::new(piece, size), at, left }
    }

    /// Whether they were, as far as can be told, what the manifest says, and no more than was asked for. After `false` it takes
    /// no more.
    pub(super) async fn take(&mut self, mut bytes: Bytes) -> anyhow::Result<bool> {
        while !bytes.is_empty() {
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            if left == 0 || self.piece == self.end {
                return Ok(false);
            }
            let part = bytes.split_to(left.min(HOT_BYTES).min(bytes.len()));
            self.hasher.update(&part);
            let written = self.target.write(&part, self.at);
            written.with_context(|| format!("{} cannot be written", self.target.wanted.path))?;
            self.at += part.len() as u64;
            self.left -= part.len() as u64;
            if self.left == 0 && !self.end_piece().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn end_piece(&mut self) -> anyhow::Result<bool> {
        if self.target.wanted.hash_of(self.piece) != Some(&self.hasher.finish()) {
            return Ok(false);
        }
        self.target.begin_to_write_out(self.piece);
        self.tally.done(self.target, self.piece, true).await?;
        self.piece += 1;
        let size = self.target.wanted.size;
        self.hasher = PieceHasher::new(self.piece, size);
        (self.at, self.left) = piece_span(self.piece, size);
        Ok(true)
    }
}
