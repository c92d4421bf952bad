//! One file on its way to be whole, and how far all of them have come.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::Context as _;
use cic_common::model::tree::piece_span;
use rustix::fs::{Advice, fadvise};
use tokio::sync::Notify;

use super::super::content::Stamp;
use super::staging::Staging;
use super::wanted::Wanted;

#[derive(Debug)]
pub(super) struct Target {
    pub(super) wanted: Wanted,
    pub(super) opened: File,
    /// No other process is at the directory while this one writes.
    staging: Arc<Staging>,
    writing: Mutex<()>,
    /// Pieces that it lacks still.
    lacking: AtomicU64,
    /// As it was once it was whole and in its place.
    pub(super) stamp: OnceLock<Stamp>,
}

impl Target {
    pub(super) fn open(wanted: Wanted, staging: &Arc<Staging>) -> anyhow::Result<Arc<Self>> {
        let opened = staging.file(&wanted.path, wanted.size, wanted.is_staged);
        let opened = opened.with_context(|| format!("{} cannot be written", wanted.path))?;
        let lacking = AtomicU64::new(wanted.missing.len() as u64);
        let (staging, writing, stamp) = (Arc::clone(staging), Mutex::default(), OnceLock::new());
        Ok(Arc::new(Self { wanted, opened, staging, writing, lacking, stamp }))
    }

    /// The kernel lets one in at a time, and has others wait in a loop that takes a core: here they sleep.
    pub(super) fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.opened.write_all_at(bytes, at)
    }

    /// Tells the kernel to have a piece on the disk, without waiting for it: else the disk rests until the file is whole, and is
    /// then waited for. What is on it at once may leave the page cache, no more.
    pub(super) fn begin_to_write_out(&self, piece: u64) {
        let (begin, length) = piece_span(piece, self.wanted.size);
        // A file system that does not take advice writes out at the end.
        let _ = fadvise(&self.opened, begin, NonZeroU64::new(length), Advice::DontNeed);
    }
}

/// Counts pieces that are written, and puts files in their places.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) done_bytes: AtomicU64,
    /// There are more of them.
    pub(super) came: Notify,
    /// Those that came from elsewhere.
    pub(super) fetched_bytes: AtomicU64,
}

impl Tally {
    /// A piece has the bytes of the manifest and is written.
    pub(super) async fn done(
        &self,
        target: &Arc<Target>,
        piece: u64,
        is_from_elsewhere: bool,
    ) -> anyhow::Result<()> {
        let (_, length) = piece_span(piece, target.wanted.size);
        if is_from_elsewhere {
            self.fetched_bytes.fetch_add(length, Ordering::Relaxed);
        }
        self.done_bytes.fetch_add(length, Ordering::Relaxed);
        self.came.notify_one();
        if target.lacking.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.publish(target).await?;
        }
        Ok(())
    }

    /// Has a file that is whole on the disk, and in its place.
    pub(super) async fn publish(&self, target: &Arc<Target>) -> anyhow::Result<()> {
        let synced = Arc::clone(target);
        let synced = tokio::task::spawn_blocking(move || synced.opened.sync_all()).await?;
        let published = synced.and_then(|()| target.staging.publish(&target.wanted.path, &target.opened));
        let stamped = published.and_then(|()| target.opened.metadata());
        let stamped = stamped.map(|found| target.stamp.get_or_init(|| Stamp::of(&found)));
        stamped.map(drop).with_context(|| format!("{} cannot be put in place", target.wanted.path))
    }
}
