//! The state directory: what one run of the agent leaves for the next.
//!
//! Every file is replaced whole (temporary file, sync, rename, sync of the directory), so that a crash at any
//! moment leaves the old content or the new. A file that cannot be understood counts as absent: the agent must
//! come up on a machine whose disk was torn.

use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cic_common::id::Incarnation;
use cic_common::time::unix_ms;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;
use tracing::warn;

/// Files of the state directory.
pub mod name {
    pub const ASSIGNMENT: &str = "assignment.json";
    pub const DEADMAN: &str = "deadman.json";
    pub const ENGINE: &str = "engine.json";
    pub const ENGINE_LOG: &str = "engine.log";
    pub const GPU: &str = "gpu.json";
    pub const INCARNATION: &str = "incarnation";
    pub const LOCK: &str = "lock";
    pub const MODEL: &str = "model.json";
    pub const PORTS: &str = "ports.json";
    pub const RESTART: &str = "restart.json";
    pub const ROUTES: &str = "routes.json";
    /// Files of models that were right, and as what they were found.
    pub const VERIFIED: &str = "verified.json";
    /// What this agent mounts lies below it.
    pub const MOUNTS: &str = "mounts";
}

/// A disk that takes longer to write a few kilobytes is treated as failed.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// The kernel's random name of this boot; `None` where there is no `/proc`.
#[must_use]
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state directory {} cannot be made ([node] state_dir)", .path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another agent is running in {} ([node] state_dir)", .path.display())]
    Locked { path: PathBuf },
    #[error("{} cannot be written", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} was not written within {} s", .path.display(), WRITE_DEADLINE.as_secs())]
    Late { path: PathBuf },
}

/// The state directory of one node, locked while this is alive. Clones share the lock.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: Arc<Path>,
    _lock: Arc<Flock<std::fs::File>>,
}

impl StateDir {
    /// Makes the directory if need be, and locks it: two agents with one identity would fight over one engine.
    ///
    /// # Errors
    /// When it cannot be made or written, or another agent holds it.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let create = |source| StateError::Create { path: root.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(create)?;
        let root = root.canonicalize().map_err(create)?;
        let path = root.join(name::LOCK);
        let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| StateError::Write { path, source })?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StateError::Locked { path: root.clone() })?;
        Ok(Self { root: root.into(), _lock: Arc::new(lock) })
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Counts this run. A count that cannot be read is replaced by the seconds since 1970, which is more than
    /// any count can have reached: an incarnation must never go back.
    ///
    /// # Errors
    /// When the new count cannot be made durable; without it the controller would take this run for an old one.
    pub fn next_incarnation(&self) -> Result<Incarnation, StateError> {
        let path = self.path(name::INCARNATION);
        let next = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Incarnation(1),
            Ok(text) if text.trim().parse::<u64>().is_ok() => {
                Incarnation(text.trim().parse().unwrap_or(0)).next()
            }
            unreadable => {
                warn!(path = %path.display(), ?unreadable, "incarnation count is unreadable");
                Incarnation(unix_ms() / 1000)
            }
        };
        self.replace_now(name::INCARNATION, next.to_string().as_bytes())?;
        Ok(next)
    }

    /// What is remembered under `name`; `None` when nothing is, or nothing that can be understood.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.path(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "state file is unreadable");
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .inspect_err(|error| warn!(path = %path.display(), %error, "state file makes no sense"))
            .ok()
    }

    /// Replaces `name` by `value`.
    ///
    /// # Errors
    /// When the disk is full, gone or stuck; the old content stays.
    pub async fn write<T: Serialize + Sync>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let path = self.path(name);
        let fail = |source| StateError::Write { path: path.clone(), source };
        let bytes = serde_json::to_vec_pretty(value).map_err(|error| fail(error.into()))?;
        match tokio::time::timeout(WRITE_DEADLINE, self.replace(name, &bytes)).await {
            Ok(result) => result.map_err(fail),
            Err(_) => Err(StateError::Late { path }),
        }
    }

    /// Forgets `name`. A file that cannot be removed is logged: it is checked when it is read.
    pub async fn remove(&self, name: &str) {
        let path = self.path(name);
        match tokio::time::timeout(WRITE_DEADLINE, tokio::fs::remove_file(&path)).await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %path.display(), %error, "state file cannot be removed");
            }
            Ok(_) => {}
            Err(_) => warn!(path = %path.display(), "state file was not removed in time"),
        }
    }

    async fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.path(&format!("{name}.tmp"));
        let mut file = tokio::fs::File::create(&unfinished).await?;
        file.write_all(bytes).await?;
        file.sync_all().await?;
        tokio::fs::rename(&unfinished, self.path(name)).await?;
        tokio::fs::File::open(&self.root).await?.sync_all().await
    }

    fn replace_now(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.path(name);
        let write = || {
            let unfinished = self.path(&format!("{name}.tmp"));
            let mut file = std::fs::File::create(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)?;
            std::fs::File::open(&self.root)?.sync_all()
        };
        write().map_err(|source| StateError::Write { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_counts_up_and_never_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        assert_eq!(state.next_incarnation().unwrap(), Incarnation(1));
        assert_eq!(state.next_incarnation().unwrap(), Incarnation(2));
        std::fs::write(state.path(name::INCARNATION), "torn\0").unwrap();
        let after = state.next_incarnation().unwrap();
        assert!(after > Incarnation(1_000_000_000), "{after}");
        assert_eq!(state.next_incarnation().unwrap(), after.next());
    }

    #[test]
    fn two_agents_cannot_share_a_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(directory.path()).unwrap();
        assert!(matches!(StateDir::open(directory.path()), Err(StateError::Locked { .. })));
        drop(first);
        assert!(StateDir::open(directory.path()).is_ok());
    }

    #[tokio::test]
    async fn a_torn_file_counts_as_absent() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        assert_eq!(state.read::<u32>("x.json"), None);
        state.write("x.json", &7u32).await.unwrap();
        assert_eq!(state.read::<u32>("x.json"), Some(7));
        std::fs::write(state.path("x.json"), "{").unwrap();
        assert_eq!(state.read::<u32>("x.json"), None);
        state.remove("x.json").await;
        assert!(!state.path("x.json").exists());
    }
}
