//! Bytes of a file as they come, hashed and written while more of them are on their way.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use cic_common::model::tree::{PieceHasher, piece_span};

use super::target::{Tally, Target};

/// Hashed and written at once: worth the way to another thread, and no more memory than that for each that is under way.
const BATCH_BYTES: usize = 256 << 10;

/// Written while it is still in the processor's cache from being hashed.
const HOT_BYTES: usize = 128 << 10;

/// Takes the bytes of consecutive pieces. What is written counts once the piece has its hash; until then whatever is there is
/// looked at again by the next run, as anything in the staging folder.
pub(super) struct Feed<'a> {
    target: &'a Arc<Target>,
    tally: &'a Tally<'a>,
    /// The one that comes, and the first that does not.
    pub(super) piece: u64,
    end: u64,
    /// Of the piece that comes; `None` before its first batch.
    hasher: Option<PieceHasher>,
    /// Where the batch goes.
    at: u64,
    /// Bytes that the piece lacks, those of the batch not counted.
    left: u64,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl<'a> Feed<'a> {
    pub(super) fn new(target: &'a Arc<Target>, tally: &'a Tally<'a>, pieces: Range<u64>) -> Self {
        let (at, left) = piece_span(pieces.start, target.wanted.size);
        let (piece, end, batch) = (pieces.start, pieces.end, Vec::new());
        Self { target, tally, piece, end, hasher: None, at, left, batch, batch_bytes: 0 }
    }

    /// Whether they were, as far as can be told, what the manifest says, and no more than was asked for. After `false` it takes
    /// no more.
    pub(super) async fn take(&mut self, mut bytes: Bytes) -> anyhow::Result<bool> {
        while !bytes.is_empty() {
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            if count == 0 || self.piece == self.end {
                return Ok(false);
            }
            self.batch.push(bytes.split_to(count));
            self.batch_bytes += count;
            self.left -= count as u64;
            if (self.left == 0 || self.batch_bytes >= BATCH_BYTES) && !self.flush().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the batch, and ends the piece if that was all of it.
    async fn flush(&mut self) -> anyhow::Result<bool> {
        let (batch, hasher) = (std::mem::take(&mut self.batch), self.hasher.take());
        let size = self.target.wanted.size;
        let mut hasher = hasher.unwrap_or_else(|| PieceHasher::new(self.piece, size));
        let (target, at, ends) = (Arc::clone(self.target), self.at, (self.left == 0).then_some(self.piece));
        let write = move || {
            let mut at = at;
            for part in batch.iter().flat_map(|part| part.chunks(HOT_BYTES)) {
                hasher.update(part);
                target.write(part, at)?;
                at += part.len() as u64;
            }
            if let Some(piece) = ends {
                target.begin_to_write_out(piece);
            }
            Ok::<_, std::io::Error>(hasher)
        };
        let written = tokio::task::spawn_blocking(write).await?;
        let hasher = written.with_context(|| format!("{} cannot be written", self.target.wanted.path))?;
        self.at += self.batch_bytes as u64;
        self.batch_bytes = 0;
        if ends.is_none() {
            self.hasher = Some(hasher);
            return Ok(true);
        }
        if self.target.wanted.hash_of(self.piece) != Some(&hasher.finish()) {
            return Ok(false);
        }
        self.tally.done(self.target, self.piece, true).await?;
        self.piece += 1;
        (self.at, self.left) = piece_span(self.piece, size);
        Ok(true)
    }
}
