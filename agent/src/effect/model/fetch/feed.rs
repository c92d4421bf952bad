//! Bytes of a file as they come, hashed and written while more of them are on their way.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use cic_common::model::tree::{PieceHasher, piece_span};

use super::target::{Tally, Target};

/// Hashed and written at once: worth the way to another thread, and no more memory than that for each that is under way.
const BATCH_BYTES: usize = 1 << 20;

/// Takes the bytes of consecutive pieces. What is written counts once the piece has its hash; until then whatever is there is
/// looked at again by the next run, as anything in the staging folder.
pub(super) struct Feed<'a> {
    target: &'a Arc<Target>,
    tally: &'a Tally<'a>,
    /// The one that comes.
    pub(super) piece: u64,
    hasher: Option<PieceHasher>,
    /// Where the batch goes.
    at: u64,
    /// Bytes that the piece lacks, those of the batch not counted.
    left: u64,
    batch: Vec<Bytes>,
    batch_bytes: usize,
}

impl<'a> Feed<'a> {
    pub(super) fn new(target: &'a Arc<Target>, tally: &'a Tally<'a>, piece: u64) -> Self {
        let (at, left) = piece_span(piece, target.wanted.size);
        let hasher = Some(PieceHasher::new(piece, target.wanted.size));
        Self { target, tally, piece, hasher, at, left, batch: Vec::new(), batch_bytes: 0 }
    }

    /// Whether they were, as far as can be told, what the manifest says. After `false` it takes no more.
    pub(super) async fn take(&mut self, mut bytes: Bytes) -> anyhow::Result<bool> {
        while !bytes.is_empty() {
            let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            if count == 0 {
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
        let (target, at, batch) = (Arc::clone(self.target), self.at, std::mem::take(&mut self.batch));
        let hasher = self.hasher.take();
        let mut hasher = hasher.unwrap_or_else(|| PieceHasher::new(self.piece, target.wanted.size));
        let write = move || {
            let mut at = at;
            for part in batch {
                hasher.update(&part);
                target.opened.write_all_at(&part, at)?;
                at += part.len() as u64;
            }
            Ok::<_, std::io::Error>(hasher)
        };
        let written = tokio::task::spawn_blocking(write).await?;
        let hasher = written.with_context(|| format!("{} cannot be written", self.target.wanted.path))?;
        self.at += self.batch_bytes as u64;
        self.batch_bytes = 0;
        if self.left > 0 {
            self.hasher = Some(hasher);
            return Ok(true);
        }
        if self.target.wanted.hash_of(self.piece) != Some(&hasher.finish()) {
            return Ok(false);
        }
        self.tally.done(self.target, self.piece, true).await?;
        self.piece += 1;
        let (at, left) = piece_span(self.piece, self.target.wanted.size);
        (self.at, self.left) = (at, left);
        self.hasher = Some(PieceHasher::new(self.piece, self.target.wanted.size));
        Ok(true)
    }
}
