//! Killing everything that belongs to an engine.
//!
//! vLLM leaves processes behind: after a kill of its API server, EngineCore and Worker live on for ever with the
//! GPU's memory; after a kill of EngineCore, Worker does. They are found by the engine's session, by its cgroup,
//! by the tag in their environment, and as kin of those, whichever way they tried to leave.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::process::{Process, family};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tracing::{error, info, warn};

use super::{Record, cgroup, procfs};

/// A killed process is gone in milliseconds; one that waits for a device may take longer, or for ever.
const SWEEP_DEADLINE: Duration = Duration::from_secs(10);

/// `/proc` of a process that hangs in a driver may hang too.
const LISTED_WITHIN: Duration = Duration::from_secs(2);

/// Between two looks at what is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Variables in the environment of every process of this node's engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub node: NodeId,
    /// Tells two fleets of one machine apart whose nodes have the same names.
    pub state_dir: PathBuf,
}

impl Tag {
    pub(super) const NODE: &'static str = "CIC_NODE";
    pub(super) const STATE_DIR: &'static str = "CIC_STATE_DIR";

    /// Whether an environment as `/proc/PID/environ` shows it carries this tag.
    fn marks(&self, environment: &[u8]) -> bool {
        let node = format!("{}={}", Self::NODE, self.node);
        let state_dir = format!("{}={}", Self::STATE_DIR, self.state_dir.display());
        let has = |wanted: &str| environment.split(|&byte| byte == 0).any(|entry| entry == wanted.as_bytes());
        has(&node) && has(&state_dir)
    }
}

/// What to look for besides the tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trail<'a> {
    /// The engine's main process, which led its session.
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    pub(super) cgroup: Option<&'a Path>,
}

impl<'a> From<&'a Record> for Trail<'a> {
    fn from(record: &'a Record) -> Self {
        Self { pid: record.pid, start_ticks: record.start_ticks, cgroup: record.cgroup.as_deref() }
    }
}

/// Kills until nothing is left or the deadline has passed. Returns the pids that survive that.
pub(super) async fn sweep(tag: &Tag, trail: Option<Trail<'_>>) -> Vec<u32> {
    let mut survivors = Vec::new();
    let mut killed = BTreeSet::new();
    let mut left = Vec::new();
    let sweeping = async {
        loop {
            match tokio::time::timeout(LISTED_WITHIN, belonging(tag, trail)).await {
                Ok(Ok(found)) if found.is_empty() => break,
                Ok(Ok(found)) => left = found,
                // Not to be seen is not to be gone.
                Ok(Err(error)) => warn!(%error, "engine processes cannot be looked for"),
                Err(_) => warn!(within = ?LISTED_WITHIN, "engine processes are not listed in time"),
            }
            for process in &left {
                send(process.pid, Signal::SIGKILL);
                killed.insert((process.pid, process.start_ticks));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if tokio::time::timeout(SWEEP_DEADLINE, sweeping).await.is_err() {
        survivors.extend(left.iter().map(|process| process.pid));
        error!(pids = ?survivors, within = ?SWEEP_DEADLINE, "engine processes survive SIGKILL");
    }
    if let Some(path) = trail.and_then(|trail| trail.cgroup) {
        cgroup::kill(path).await;
    }
    if !killed.is_empty() {
        info!(node = %tag.node, count = killed.len(), "killed processes of the engine");
    }
    survivors
}

/// Kills the engine's session once, leaving the rest to the sweep that follows its end.
pub(super) async fn kill_session(trail: Trail<'_>) {
    let processes = match procfs::processes().await {
        Ok(processes) => processes,
        Err(error) => return warn!(%error, "engine processes cannot be looked for"),
    };
    for process in processes {
        let is_main = process.pid == trail.pid && process.start_ticks == trail.start_ticks;
        if is_main || process.session == trail.pid {
            send(process.pid, Signal::SIGKILL);
        }
    }
}

/// Sends a signal to one process; one that has ended meanwhile is no failure.
pub(super) fn send(pid: u32, signal: Signal) {
    // Pids of Linux are positive i32.
    if let Ok(pid) = i32::try_from(pid) {
        let _gone_already = kill(Pid::from_raw(pid), signal);
    }
}

/// Every process of the engine.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) async fn belonging(tag: &Tag, trail: Option<Trail<'_>>) -> io::Result<Vec<Process>> {
    let processes = procfs::processes().await?;
    // A session whose number now leads another process is not the engine's any more.
    let session = trail
        .filter(|trail| processes.iter().all(|p| p.pid != trail.pid || p.start_ticks == trail.start_ticks));
    let mut marked = BTreeSet::new();
    for process in &processes {
        let in_session = session.is_some_and(|trail| process.session == trail.pid);
        if in_session || tag.marks(&procfs::environment(process.pid).await) {
            marked.insert(process.pid);
        }
    }
    let mut found = family(&processes, |process| marked.contains(&process.pid));
    found.retain(|process| process.pid != std::process::id());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_marks_only_its_own_node_in_its_own_fleet() {
        let tag = Tag { node: NodeId::new("n1").unwrap(), state_dir: PathBuf::from("/a") };
        for (environment, marks) in [
            (&b"PATH=/bin\0CIC_NODE=n1\0CIC_STATE_DIR=/a\0"[..], true),
            (b"CIC_NODE=n1\0CIC_STATE_DIR=/b\0", false),
            (b"CIC_NODE=n10\0CIC_STATE_DIR=/a\0", false),
            (b"X_CIC_NODE=n1\0CIC_STATE_DIR=/a\0", false),
            (b"", false),
        ] {
            assert_eq!(tag.marks(environment), marks, "{}", String::from_utf8_lossy(environment));
        }
    }
}
