//! Processes of this machine, by pid and by the tag in their environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::id::NodeId;
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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the name in parentheses may hold anything; state is field 3, starttime field 22.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
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

    /// Living processes that carry it, the machine itself included. Others' processes cannot be read and are
    /// not ours.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let wanted = self.variables().map(|(name, value)| format!("{name}={value}").into_bytes());
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| carries(*pid, &wanted) && start_time(*pid).is_some())
            .collect()
    }

    /// Sends `signal` to all that carry it but `except`; returns how many there were.
    pub fn signal_all(&self, signal: Signal, except: Option<u32>) -> usize {
        let found: Vec<u32> = self.processes().into_iter().filter(|pid| Some(*pid) != except).collect();
        for pid in &found {
            send(*pid, signal);
        }
        found.len()
    }

    /// Kills all that carry it but `except`, again and again until none is left: a process may start another
    /// while it is being killed. False when some remain after `within`.
    pub async fn kill_all(&self, except: Option<u32>, within: Duration) -> bool {
        wait_until(within, || self.signal_all(Signal::SIGKILL, except) == 0).await
    }
}

/// Looks until `is_so` or `within` has passed; tells which.
pub(super) async fn wait_until(within: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::time::timeout(within, looks).await.is_ok()
}

fn carries(pid: u32, wanted: &[Vec<u8>]) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    wanted.iter().all(|want| environment.split(|byte| *byte == 0).any(|entry| entry == &want[..]))
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
        assert!(ours.kill_all(None, Duration::from_secs(10)).await);
        assert_eq!(theirs.processes(), [other.id()]);
        other.kill().expect("kills");
        for child in [&mut mine, &mut other] {
            child.wait().expect("reaped");
        }
    }
}
