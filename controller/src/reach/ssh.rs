//! Starting an agent anew through the system's `ssh`, where neither of its paths answers and sshd does.
//!
//! No shell is used on this side: the program gets a list of arguments, and the host, which a node named, comes after
//! `--`. On the other side the login shell runs the configured command and nothing else.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use cic_common::id::NodeId;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::host::Host;

/// What is run on the node unless configured otherwise.
pub const DEFAULT_COMMAND: &str = "systemctl restart cic-agent";

/// From start to end. The agent's unit stops and starts within seconds; one that hangs is killed by its init later, and
/// the node is replaced meanwhile.
const RESTART_WITHIN: Duration = Duration::from_secs(20);

/// TCP and the version exchange: ssh's own limit, below ours, so that its words say what was missing.
const CONNECT_WITHIN_S: u64 = 5;

/// After SIGKILL the program is gone; this only bounds the wait for it.
const REAP_WITHIN: Duration = Duration::from_secs(1);

/// Kept of what ssh wrote, its end, of each of its two outputs.
const TAIL_BYTES_MAX: usize = 2 << 10;

/// Whose host keys are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKeys {
    /// The first key that a node shows is kept in this file, under the node's id since addresses are given out again;
    /// a node that shows another key later is refused.
    FirstSeen(PathBuf),
    /// Only those in this file.
    Listed(PathBuf),
}

/// How to log in, and what to run there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSpec {
    pub program: PathBuf,
    pub user: String,
    pub key_file: PathBuf,
    pub host_keys: HostKeys,
    /// For the login shell on the node.
    pub command: String,
}

/// Why an agent was not restarted.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestartError {
    #[error("{program:?} cannot be run: {source}")]
    Start { program: PathBuf, source: io::Error },
    #[error("not done within {RESTART_WITHIN:?}{tail}")]
    Late { tail: Tail },
    #[error("{status}{tail}")]
    Failed { status: ExitStatus, tail: Tail },
}

/// Logs in at `host` and runs the command there.
///
/// # Errors
/// With what ssh or the command wrote last. After `Late` the command may have been run.
pub(super) async fn run(spec: &SshSpec, node: &NodeId, host: &Host, port: u16) -> Result<(), RestartError> {
    run_within(RESTART_WITHIN, spec, node, host, port).await
}

async fn run_within(
    within: Duration,
    spec: &SshSpec,
    node: &NodeId,
    host: &Host,
    port: u16,
) -> Result<(), RestartError> {
    let start = |source| RestartError::Start { program: spec.program.clone(), source };
    let mut command = Command::new(&spec.program);
    command.args(arguments(spec, node, host, port));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that a proxy or a helper that ssh starts ends with it.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(start)?;
    let mut group = Group::of(child.id());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        let (_, _, status) =
            tokio::join!(keep_tail(stdout, &mut out), keep_tail(stderr, &mut err), child.wait());
        status
    };
    let ended = timeout(within, ended).await;
    let tail = || Tail::of(&out, &err);
    match ended {
        Ok(Ok(status)) => {
            group.is_over();
            if status.success() { Ok(()) } else { Err(RestartError::Failed { status, tail: tail() }) }
        }
        Ok(Err(error)) => Err(start(error)),
        Err(_) => {
            group.kill();
            let late = RestartError::Late { tail: tail() };
            // Elapsed or not, the runtime reaps what is left.
            let _ = timeout(REAP_WITHIN, child.wait()).await;
            group.is_over();
            Err(late)
        }
    }
}

/// Every option that decides whom we trust or what is run is said here: no file of the user's or the system's is read.
fn arguments(spec: &SshSpec, node: &NodeId, host: &Host, port: u16) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["-F", "none", "-n", "-T", "-a", "-x"].map(OsString::from).into();
    let mut option = |name: &str, value: OsString| {
        let mut text = OsString::from(format!("{name}="));
        text.push(value);
        arguments.extend([OsString::from("-o"), text]);
    };
    for (name, value) in [
        ("BatchMode", "yes"),
        ("IdentitiesOnly", "yes"),
        ("IdentityAgent", "none"),
        ("GlobalKnownHostsFile", "/dev/null"),
        ("UpdateHostKeys", "no"),
        ("ForwardAgent", "no"),
        ("ForwardX11", "no"),
        ("ClearAllForwardings", "yes"),
        ("PermitLocalCommand", "no"),
        ("ControlMaster", "no"),
        ("ControlPath", "none"),
        ("ServerAliveInterval", "5"),
        ("ServerAliveCountMax", "2"),
    ] {
        option(name, value.into());
    }
    option("ConnectTimeout", CONNECT_WITHIN_S.to_string().into());
    match &spec.host_keys {
        HostKeys::FirstSeen(file) => {
            option("StrictHostKeyChecking", "accept-new".into());
            option("UserKnownHostsFile", file.into());
            option("HostKeyAlias", node.as_str().into());
        }
        HostKeys::Listed(file) => {
            option("StrictHostKeyChecking", "yes".into());
            option("UserKnownHostsFile", file.into());
        }
    }
    let place = [OsString::from("-i"), spec.key_file.clone().into(), "-p".into(), port.to_string().into()];
    let whom = [OsString::from("-l"), spec.user.clone().into(), "--".into(), host.as_str().into()];
    arguments.extend(place.into_iter().chain(whom));
    arguments.push(spec.command.clone().into());
    arguments
}

/// Reads to the end and leaves its last bytes in `tail`. What cannot be read is left out: the exit status says more.
async fn keep_tail(from: Option<impl AsyncRead + Unpin>, tail: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut part = [0; 1024];
    while let Ok(count @ 1..) = from.read(&mut part).await {
        tail.extend_from_slice(part.get(..count).unwrap_or_default());
        tail.drain(..tail.len().saturating_sub(TAIL_BYTES_MAX));
    }
}

/// The end of what was written, on one line, for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tail(String);

impl Tail {
    fn of(out: &[u8], err: &[u8]) -> Self {
        let text = [err, out].map(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let words = text.split(char::is_whitespace).filter(|word| !word.is_empty());
            words.collect::<Vec<_>>().join(" ").replace(char::is_control, "?")
        });
        Self(text.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" | "))
    }
}

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// Kills the program and all it started when it is dropped, unless it is over.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        Self(leader.and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw))
    }

    fn kill(&self) {
        if let Some(group) = self.0 {
            // It may have ended just now.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }

    /// The leader was waited for: its number may mean another process now.
    fn is_over(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests;
