//! A cgroup of the engine's own, where the agent may make one.
//!
//! It needs a delegated cgroup (systemd `Delegate=yes`). Without one the session and the tag do its work.

use std::path::{Path, PathBuf};
use std::sync::Once;

use tracing::debug;

use super::procfs;

static SKIPPED: Once = Once::new();

/// Makes a cgroup named `name` below the agent's own.
pub(super) async fn make(name: &str) -> Option<PathBuf> {
    let path = procfs::own_cgroup().await?.join(name);
    match tokio::fs::create_dir(&path).await {
        Ok(()) => Some(path),
        Err(error) => {
            SKIPPED.call_once(|| debug!(path = %path.display(), %error, "no cgroup of the engine's own"));
            None
        }
    }
}

/// Moves the calling process into the cgroup at `path`. For the launcher, before it becomes the engine.
pub(super) fn join(path: &Path) -> std::io::Result<()> {
    std::fs::write(path.join("cgroup.procs"), "0")
}

/// Kills everything in it (`cgroup.kill`, Linux 5.14) and removes it once it is empty.
pub(super) async fn kill(path: &Path) {
    let killed = tokio::fs::write(path.join("cgroup.kill"), "1").await;
    let removed = tokio::fs::remove_dir(path).await;
    if let (Err(error), _) | (_, Err(error)) = (killed, removed)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        debug!(path = %path.display(), %error, "engine cgroup is still there");
    }
}
