//! Which files were right when they were read last, so that they need not be read again while they are unchanged.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::state::boot_id;

/// A file that was changed less than this before it was looked at may be changed again within one tick of its file system's
/// clock, and look as before. s3fs and some servers of NFS count whole seconds.
const SETTLED_AFTER_NS: i128 = 2_000_000_000;

/// What a file is told by without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::effect::model) struct Stamp {
    size: u64,
    modified_ns: i128,
    /// Of its attributes too: tools that put the time of a file back cannot put back this one.
    changed_ns: i128,
    inode: u64,
    device: u64,
}

impl Stamp {
    pub(in crate::effect::model) fn of(found: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            size: found.size(),
            modified_ns: ns(found.mtime(), found.mtime_nsec()),
            changed_ns: ns(found.ctime(), found.ctime_nsec()),
            inode: found.ino(),
            device: found.dev(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stamp: Stamp,
    /// By whose measure it was right.
    digest: String,
}

/// Files by their whole paths, as one file of JSON. Without a place it remembers nothing beyond its process.
///
/// What was right before the machine started last counts for nothing: a loss of power takes back what no disk had yet, and
/// leaves length and times.
#[derive(Debug, Default)]
pub struct Ledger {
    place: Option<PathBuf>,
    now_ns: i128,
    kept: Kept,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    boot: Option<String>,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Ledger {
    /// At `now_ms` since 1970. One that cannot be read is empty: files are read once more then, and nothing else is lost.
    #[must_use]
    pub fn open(place: PathBuf, now_ms: u64) -> Self {
        let read = std::fs::read(&place).ok();
        let kept: Option<Kept> = read.and_then(|json| serde_json::from_slice(&json).ok());
        let boot = boot_id();
        let kept = kept.filter(|kept| kept.boot.is_some() && kept.boot == boot);
        let kept = kept.unwrap_or_else(|| Kept { boot, entries: BTreeMap::new() });
        Self { place: Some(place), now_ns: i128::from(now_ms) * 1_000_000, kept }
    }

    /// It is `now_ms` since 1970, or later.
    pub(in crate::effect::model) fn advance(&mut self, now_ms: u64) {
        self.now_ns = self.now_ns.max(i128::from(now_ms) * 1_000_000);
    }

    pub(super) fn knows(&self, path: &Path, stamp: Stamp, digest: &str) -> bool {
        self.kept.entries.get(path).is_some_and(|entry| entry.stamp == stamp && entry.digest == digest)
    }

    /// Unless it was changed just now.
    pub(in crate::effect::model) fn learn(&mut self, path: PathBuf, stamp: Stamp, digest: String) {
        if stamp.modified_ns.max(stamp.changed_ns) <= self.now_ns - SETTLED_AFTER_NS {
            self.kept.entries.insert(path, Entry { stamp, digest });
        }
    }

    pub(super) fn forget(&mut self, path: &Path) {
        self.kept.entries.remove(path);
    }

    /// Forgets files below `directory` for which `is_of_use` does not hold.
    pub(super) fn retain_below(&mut self, directory: &Path, is_of_use: impl Fn(&Path) -> bool) {
        self.kept.entries.retain(|path, _| path.strip_prefix(directory).map_or(true, &is_of_use));
    }

    /// # Errors
    /// When its file cannot be written.
    pub(in crate::effect::model) fn save(&self) -> io::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        // Another process may write its own at the same time: the later one counts.
        let beside = place.with_extension(format!("{}.new", std::process::id()));
        let json = serde_json::to_vec(&self.kept).map_err(io::Error::other)?;
        let written = std::fs::write(&beside, json).and_then(|()| std::fs::rename(&beside, place));
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        written
    }
}
