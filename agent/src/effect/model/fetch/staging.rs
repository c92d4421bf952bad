//! Where files lie until they are whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use cic_common::model::Manifest;
use cic_common::model::place::walk;
use cic_common::units::Bytes;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;

/// In a directory that is there already, which may be a file system of its own.
const WITHIN: &str = ".cic-fetch";

const LOCK: &str = ".cic-lock";

/// Files that are being fetched, hidden from engines. What a run that was cut off leaves there is of use to the next.
#[derive(Debug)]
pub(super) struct Staging {
    directory: PathBuf,
    folder: PathBuf,
    /// Nothing was there before: the directory appears as a whole.
    pub(super) is_new: bool,
    /// Held until nothing is written any more.
    _lock: Flock<File>,
}

/// Another process is at it.
#[derive(Debug, thiserror::Error)]
#[error("{} is being fetched by another process", .0.display())]
pub struct Busy(PathBuf);

impl Staging {
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        let is_new = !directory.exists();
        let folder = if is_new { beside(directory)? } else { directory.join(WITHIN) };
        let busy = || Busy(directory.to_owned());
        fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let place = folder.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&place);
        let lock = lock.with_context(|| format!("{} cannot be written", folder.display()))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|_| busy())?;
        // The one before may have ended, and taken its folder away, between the two calls.
        let is_same = is_file_at(&lock, &place) && directory.exists() != is_new;
        ensure!(is_same, busy());
        Ok(Self { directory: directory.to_owned(), folder, is_new, _lock: lock })
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// The file of `size` bytes, to be written in: one that is there, or a new one.
    pub(super) fn file(&self, path: &str, size: u64, is_there: bool) -> io::Result<File> {
        let staged = self.path(path);
        make_folder(&staged)?;
        let file = File::options().create(!is_there).truncate(false).read(true).write(true).open(staged)?;
        file.set_len(size)?;
        Ok(file)
    }

    /// Puts a file that is whole, and on the disk, where it belongs, if that is there already.
    pub(super) fn publish(&self, path: &str, file: &File) -> io::Result<()> {
        if self.is_new {
            return Ok(());
        }
        let (from, to) = (self.path(path), self.directory.join(path));
        make_folder(&to)?;
        let folder = to.parent().unwrap_or(&self.directory).canonicalize()?;
        if !folder.starts_with(self.directory.canonicalize()?) {
            return Err(io::Error::other(format!("its folder leads to {}", folder.display())));
        }
        if !is_file_at(file, &from) {
            return Err(io::Error::other("it was taken away meanwhile"));
        }
        fs::rename(from, &to)?;
        sync_folders(&to, &self.directory)
    }

    /// The end: all files of `manifest` are whole.
    pub(super) fn finish(&self, manifest: &Manifest) -> io::Result<()> {
        if !self.is_new {
            return fs::remove_dir_all(&self.folder);
        }
        for path in walk(&self.folder)? {
            if manifest.file(&path).is_none() && !manifest.says_nothing_of(&path) {
                // Of another manifest, by a run that was cut off.
                fs::remove_file(self.folder.join(path))?;
            } else {
                sync_folders(&self.folder.join(path), &self.folder)?;
            }
        }
        fs::rename(&self.folder, &self.directory)?;
        fs::remove_file(self.directory.join(LOCK))?;
        sync(self.directory.parent())
    }

    /// That there is room for so many bytes more.
    pub(super) fn require_room(&self, needed: u64) -> anyhow::Result<()> {
        let found = statvfs(&self.folder).context("ask for the room on the disk")?;
        require(needed, found.blocks_available().saturating_mul(found.fragment_size()))
            .with_context(|| self.folder.display().to_string())
    }
}

pub(super) fn require(needed: u64, room: u64) -> anyhow::Result<()> {
    ensure!(
        needed <= room,
        "{} are to be written and there is room for {}: free {} more",
        Bytes(needed),
        Bytes(room),
        Bytes(needed.saturating_sub(room))
    );
    Ok(())
}

/// A hidden neighbour, so that it can be renamed to the directory.
fn beside(directory: &Path) -> anyhow::Result<PathBuf> {
    let name = directory.file_name().context("a directory has a name")?.to_string_lossy();
    Ok(directory.with_file_name(format!(".{name}{WITHIN}")))
}

fn is_file_at(file: &File, path: &Path) -> bool {
    let of = |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
    of(file.metadata()).is_some_and(|file| Some(file) == of(path.symlink_metadata()))
}

fn make_folder(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), fs::create_dir_all)
}

/// The folders from that of `file` up to `top`, so that its name outlives a loss of power too.
fn sync_folders(file: &Path, top: &Path) -> io::Result<()> {
    for folder in file.ancestors().skip(1) {
        sync(Some(folder))?;
        if folder == top {
            break;
        }
    }
    Ok(())
}

fn sync(folder: Option<&Path>) -> io::Result<()> {
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}
