//! Processes of this machine, by pid and by the tag in their environment.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::process::{Process, environment_path, family};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Environment variable that every process of a node carries, with the node's id.
pub const NODE_VARIABLE: &str = "CIC_NODE";

/// Environment variable beside it, with the node's directory: two fleets on one machine may use the same ids.
pub const HOME_VARIABLE: &str = "CIC_MACHINE";

/// Between looks at processes that should end.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Ticks after boot at which a living process started; together with the pid it names a process for good. None
/// when there is no such process, or only its remains (a zombie).
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    Process::read(pid).filter(|process| !process.is_zombie).map(|process| process.start_ticks)
}

/// Whether the process that had `pid` when it started at `started` still runs. A stopped one does.
#[must_use]
pub fn is_alive(pid: u32, started: u64) -> bool {
    start_time(pid) == Some(started)
}

/// Sends `signal`; a process that is already gone is no error.
pub fn send(pid: u32, signal: Signal) {
    let Ok(raw) = i32::try_from(pid) else { return };
    match kill(Pid::from_raw(raw), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid, %signal, %error, "signal not sent"),
    }
}

/// What every process of one VM carries in its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    pub node: NodeId,
    pub home: PathBuf,
}

impl Tag {
    #[must_use]
    pub fn new(node: NodeId, home: &Path) -> Self {
        Self { node, home: home.to_owned() }
    }

    /// The variables to set on a process that belongs to this VM.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, String); 2] {
        [(NODE_VARIABLE, self.node.to_string()), (HOME_VARIABLE, self.home.display().to_string())]
    }

    /// Living processes that carry it and their kin, the machine itself included.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let wanted = self.variables().map(|(name, value)| format!("{name}={value}").into_bytes());
        marked(|environment| {
            let has = |want: &Vec<u8>| environment.split(|byte| *byte == 0).any(|entry| entry == want);
            wanted.iter().all(has)
        })
    }

    /// Sends `signal` to all of them; returns how many there were.
    pub fn signal_all(&self, signal: Signal) -> usize {
        let found = self.processes();
        found.iter().for_each(|pid| send(*pid, signal));
        found.len()
    }
}

/// Living processes whose environment (entries ended by NUL) `is_ours` knows, and their kin; this one is left out of
/// the result, its descendants are not. Others' processes cannot be read and are not ours.
pub fn marked(is_ours: impl Fn(&[u8]) -> bool) -> Vec<u32> {
    let own = std::process::id();
    let carries = |process: &Process| {
        fs::read(environment_path(process.pid)).is_ok_and(|environment| is_ours(&environment))
    };
    let found = family(&Process::all().unwrap_or_default(), carries);
    found.iter().map(|process| process.pid).filter(|pid| *pid != own).collect()
}

/// Ends what `find` finds, all at once and again until it finds nothing. Everything is stopped before anything is
/// killed: no process sees another die, and none starts another that nobody looks for. False when some remain after
/// `within`.
pub async fn kill_all(within: Duration, find: impl Fn() -> Vec<u32>) -> bool {
    let mut stopped = BTreeSet::new();
    wait_until(within, || {
        let left = find();
        let signal = match left.iter().all(|pid| stopped.contains(pid)) {
            true => Signal::SIGKILL,
            false => Signal::SIGSTOP,
        };
        left.iter().for_each(|pid| send(*pid, signal));
        stopped.extend(left.iter().copied());
        left.is_empty()
    })
    .await
}

/// Looks until `is_so` or `within` has passed; tells which.
pub async fn wait_until(within: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::time::timeout(within, looks).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_pid_and_start_time() {
        let pid = std::process::id();
        let started = start_time(pid).expect("this test runs");
        assert!(is_alive(pid, started));
        assert!(!is_alive(pid, started + 1));
        assert_eq!(start_time(u32::MAX), None);
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = std::process::Command::new("true").spawn().expect("spawns");
        while start_time(child.id()).is_some() {
            std::thread::yield_now();
        }
        child.wait().expect("reaped");
    }

    #[tokio::test]
    async fn a_tag_finds_its_own_processes_and_ends_them_even_when_stopped() {
        let node = NodeId::new("n1").expect("valid");
        let [ours, theirs] = ["/ours", "/theirs"].map(|home| Tag::new(node.clone(), Path::new(home)));
        let spawn = |tag: &Tag| {
            let mut command = std::process::Command::new("sleep");
            command.arg("600").envs(tag.variables()).spawn().expect("spawns")
        };
        let (mut mine, mut other) = (spawn(&ours), spawn(&theirs));
        send(mine.id(), Signal::SIGSTOP);
        assert_eq!(ours.processes(), [mine.id()]);
        assert!(kill_all(Duration::from_secs(10), || ours.processes()).await);
        assert_eq!(theirs.processes(), [other.id()]);
        other.kill().expect("kills");
        for child in [&mut mine, &mut other] {
            child.wait().expect("reaped");
        }
    }

    #[tokio::test]
    async fn a_child_that_lost_the_tag_is_ended_with_its_parent() {
        let home = tempfile::tempdir().expect("directory");
        let tag = Tag::new(NodeId::new("n1").expect("valid"), home.path());
        let pid_file = home.path().join("pid");
        // What a vLLM engine core looks like: no environment that could be read, in the session of its server.
        let script = format!("env -i sleep 600 & echo $! > {}; wait", pid_file.display());
        let mut parent = std::process::Command::new("setsid");
        let mut parent = parent.args(["sh", "-c", &script]).envs(tag.variables()).spawn().expect("spawns");
        let deadline = Duration::from_secs(10);
        let child = || fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
        assert!(wait_until(deadline, || child().is_some_and(|pid| tag.processes().contains(&pid))).await);
        let child = child().expect("written");
        assert!(kill_all(deadline, || tag.processes()).await);
        assert_eq!(start_time(child), None);
        parent.wait().expect("reaped");
    }
}
