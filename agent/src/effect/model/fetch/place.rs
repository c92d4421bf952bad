//! Where files lie until they are whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use cic_common::units::Bytes;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;

/// In a directory that is there already, which may be a file system of its own.
const WITHIN: &str = ".cic-fetch";

const LOCK: &str = ".cic-lock";

/// Files that are being fetched, hidden from engines. What a run that was cut off leaves there is of use to the next.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    staging: PathBuf,
    /// Nothing was there before: the directory appears as a whole.
    is_new: bool,
    /// Held while this process lives.
    _lock: Flock<File>,
}

impl Place {
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        let is_new = !directory.exists();
        let staging = if is_new { beside(directory)? } else { directory.join(WITHIN) };
        fs::create_dir_all(&staging).with_context(|| format!("{} cannot be made", staging.display()))?;
        let lock = File::options().create(true).truncate(false).write(true).open(staging.join(LOCK));
        let lock = lock.with_context(|| format!("{} cannot be written", staging.display()))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .with_context(|| format!("{} is being fetched by another process", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), staging, is_new, _lock: lock })
    }

    pub(super) fn staged(&self, path: &str) -> PathBuf {
        self.staging.join(path)
    }

    /// Takes a file that is wrong out of the directory: its right pieces are kept.
    pub(super) fn take(&self, path: &str) -> io::Result<()> {
        let (from, to) = (self.directory.join(path), self.staged(path));
        make_folder(&to)?;
        // What an earlier run has of it is likely the better part.
        if to.exists() {
            return fs::remove_file(from);
        }
        if from.is_symlink() {
            // The file behind it is another's, such as a cache of the hub.
            fs::copy(&from, &to)?;
            return fs::remove_file(from);
        }
        fs::rename(from, to)
    }

    /// The file of `size` bytes, to be written in.
    pub(super) fn file(&self, path: &str, size: u64) -> io::Result<File> {
        let staged = self.staged(path);
        make_folder(&staged)?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(staged)?;
        file.set_len(size)?;
        Ok(file)
    }

    /// Puts a file that is whole where it belongs, if that is there already.
    pub(super) fn publish(&self, path: &str, file: &File) -> io::Result<()> {
        file.sync_all()?;
        if self.is_new {
            return Ok(());
        }
        let to = self.directory.join(path);
        make_folder(&to)?;
        fs::rename(self.staged(path), &to)?;
        sync_folder(&to)
    }

    /// The end: all files are whole.
    pub(super) fn finish(self) -> io::Result<()> {
        fs::remove_file(self.staging.join(LOCK))?;
        if self.is_new {
            fs::rename(&self.staging, &self.directory)?;
            return sync_folder(&self.directory);
        }
        fs::remove_dir_all(&self.staging)
    }

    /// That there is room for so many bytes more.
    pub(super) fn require_room(&self, needed: u64) -> anyhow::Result<()> {
        let found = statvfs(&self.staging).context("ask for the room on the disk")?;
        require(needed, found.blocks_available().saturating_mul(found.fragment_size()))
            .with_context(|| self.staging.display().to_string())
    }
}

pub(super) fn require(needed: u64, room: u64) -> anyhow::Result<()> {
    ensure!(
        needed <= room,
        "{} are to be fetched and there is room for {}: free {} more",
        Bytes(needed),
        Bytes(room),
        Bytes(needed.saturating_sub(room))
    );
    Ok(())
}

/// A hidden neighbour, so that it can be renamed to the directory.
fn beside(directory: &Path) -> anyhow::Result<PathBuf> {
    let name = directory.file_name().context("a directory has a name")?.to_string_lossy();
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(parent.unwrap_or_else(|| Path::new(".")).join(format!(".{name}{WITHIN}")))
}

fn make_folder(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), fs::create_dir_all)
}

/// So that the name outlives a loss of power too.
fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}
