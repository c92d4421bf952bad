//! Which files were right when they were read last, so that they need not be read again while they are unchanged.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a file is told by without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    modified_ns: i128,
    inode: u64,
}

impl Stamp {
    pub(super) fn of(found: &Metadata) -> Self {
        let modified_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Self { size: found.size(), modified_ns, inode: found.ino() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    stamp: Stamp,
    /// By whose measure it was right.
    digest: String,
}

/// Files by their whole paths, as one file of JSON. Without a place it remembers nothing beyond its process.
#[derive(Debug, Default)]
pub struct Ledger {
    place: Option<PathBuf>,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Ledger {
    /// One that cannot be read is empty: files are read once more then, and nothing else is lost.
    #[must_use]
    pub fn open(place: PathBuf) -> Self {
        let read = std::fs::read(&place).ok();
        let entries = read.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        Self { place: Some(place), entries }
    }

    pub(super) fn knows(&self, path: &Path, stamp: Stamp, digest: &str) -> bool {
        self.entries.get(path).is_some_and(|entry| entry.stamp == stamp && entry.digest == digest)
    }

    pub(super) fn learn(&mut self, path: PathBuf, stamp: Stamp, digest: String) {
        self.entries.insert(path, Entry { stamp, digest });
    }

    pub(super) fn forget(&mut self, path: &Path) {
        self.entries.remove(path);
    }

    /// # Errors
    /// When its file cannot be written.
    pub(super) fn save(&self) -> io::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let beside = place.with_extension("new");
        let json = serde_json::to_vec(&self.entries).map_err(io::Error::other)?;
        std::fs::write(&beside, json)?;
        std::fs::rename(beside, place)
    }
}
