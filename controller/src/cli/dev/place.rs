//! The fleet's directory.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::endpoint::DevRecord;
use super::super::failure::Failure;
use super::ending;

/// `DIR/controller.toml`, `controller.log`, `gateway/`, `nodes/NODE/`, `dev.json`.
#[derive(Debug)]
pub(super) struct Place {
    /// Absolute.
    pub(super) dir: PathBuf,
    /// Removed at the end.
    pub(super) is_temporary: bool,
}

impl Place {
    /// Makes the directory `given`, or a temporary one. What an earlier fleet left there is removed first.
    ///
    /// # Errors
    /// When a fleet runs there, or the directory is something else's.
    pub(super) async fn take(given: Option<&Path>) -> Result<Self, Failure> {
        let Some(dir) = given else {
            let dir = tempfile::Builder::new().prefix("cic-dev-").tempdir();
            let dir =
                dir.map_err(|error| Failure::new(format!("no temporary directory can be made: {error}")))?;
            let dir = dir.keep();
            let dir = dir.canonicalize().unwrap_or(dir);
            return Ok(Self { dir, is_temporary: true });
        };
        let made = fs::create_dir_all(dir).and_then(|()| dir.canonicalize());
        let dir =
            made.map_err(|error| Failure::mistakes(vec![format!("--dir: {}: {error}", dir.display())]))?;
        if let Some(running) = DevRecord::read(&dir).filter(DevRecord::is_running) {
            let what = format!("a `cic dev` (pid {}) runs there", running.pid);
            return Err(Failure::mistakes(vec![format!("--dir: {}: {what}; name another", dir.display())]));
        }
        let is_empty = fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty && !dir.join("controller.toml").is_file() {
            let what = "holds files and is no fleet's directory; name an empty one";
            return Err(Failure::mistakes(vec![format!("--dir: {} {what}", dir.display())]));
        }
        clean(&dir).await?;
        Ok(Self { dir, is_temporary: false })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// Ends what fleets left whose `cic dev` was killed: the one started last, and one in the directory `given`.
///
/// # Errors
/// When something remains all the same.
pub(super) async fn bury_the_dead(given: Option<&Path>) -> Result<(), Failure> {
    let there = given.and_then(|dir| DevRecord::read(&dir.canonicalize().ok()?));
    for dead in DevRecord::last().into_iter().chain(there).filter(|record| !record.is_running()) {
        clean(&dead.dir).await?;
        dead.withdraw();
        if dead.is_temporary {
            let _ = fs::remove_dir_all(&dead.dir);
        }
    }
    Ok(())
}

/// Ends what an earlier fleet left running in `dir` and removes what it left written.
async fn clean(dir: &Path) -> Result<(), Failure> {
    let ended_count = ending::end_processes(dir).await?;
    if ended_count > 0 {
        println!("ended {ended_count} processes that an earlier fleet left in {}", dir.display());
    }
    for name in ["controller", "gateway", "nodes", "graveyard", "model"] {
        let folder = dir.join(name);
        if folder.is_dir() {
            let removed = fs::remove_dir_all(&folder);
            removed
                .map_err(|error| Failure::new(format!("{} cannot be removed: {error}", folder.display())))?;
        }
    }
    for name in ["controller.toml", "controller.log", "dev.json"] {
        let _ = fs::remove_file(dir.join(name));
    }
    Ok(())
}
