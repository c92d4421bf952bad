//! Nothing is left: every process of a fleet, found by what it carries in its environment.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::failure::Failure;
use crate::provision::local::{MachineRecord, homes, process};

/// Environment variable of every process that `cic dev` starts, with the fleet's directory.
pub(super) const FLEET_VARIABLE: &str = "CIC_FLEET";

/// What machines get to shut their agents and engines down: an agent gives its engine 10 s.
const MACHINES_WITHIN: Duration = Duration::from_secs(5);

/// After SIGKILL a process goes unless it hangs in the kernel.
const KILL_WITHIN: Duration = Duration::from_secs(5);

const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Ends every process of the fleet in `dir`: machines by SIGTERM, so that engines end in order, then whatever is
/// left by SIGKILL. Returns how many there were.
///
/// # Errors
/// Names what remains all the same.
pub(super) async fn end_processes(dir: &Path) -> Result<usize, Failure> {
    let found_count = processes(dir).len();
    end_machines(dir).await;
    let are_gone = wait_until(KILL_WITHIN, || {
        let left = processes(dir);
        left.iter().for_each(|pid| process::send(*pid, Signal::SIGKILL));
        left.is_empty()
    });
    if are_gone.await {
        return Ok(found_count);
    }
    let left = processes(dir).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Failure::new(format!("processes of {} remain after SIGKILL: {left}", dir.display())))
}

/// Ends the machines of the fleet in `dir` by SIGTERM, all at once, and waits for them.
pub(super) async fn end_machines(dir: &Path) {
    let machines: Vec<MachineRecord> = homes(dir)
        .unwrap_or_default()
        .iter()
        .filter_map(|home| home.machine().ok().flatten())
        .filter(MachineRecord::is_running)
        .collect();
    for machine in &machines {
        process::send(machine.pid, Signal::SIGTERM);
    }
    // A frozen process would only take its SIGTERM once it goes on.
    if !machines.is_empty() {
        processes(dir).iter().for_each(|pid| process::send(*pid, Signal::SIGCONT));
    }
    wait_until(MACHINES_WITHIN, || !machines.iter().any(MachineRecord::is_running)).await;
}

/// Living processes of the fleet in `dir`, this one excepted.
///
/// A VM does not inherit what its controller was given, so those inside one are known by their machine's tag.
pub(super) fn processes(dir: &Path) -> Vec<u32> {
    let fleet = [FLEET_VARIABLE.as_bytes(), b"=", dir.as_os_str().as_bytes()].concat();
    let nodes = dir.join("nodes");
    let machine = [process::HOME_VARIABLE.as_bytes(), b"=", nodes.as_os_str().as_bytes(), b"/"].concat();
    let is_ours = |pid: u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == fleet || entry.starts_with(&machine))
    };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id() && is_ours(*pid) && process::start_time(*pid).is_some())
        .collect()
}

async fn wait_until(within: Duration, mut is_so: impl FnMut() -> bool) -> bool {
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

    #[tokio::test]
    async fn processes_of_a_fleet_are_found_and_ended_and_no_others() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("directory"));
        let start = |variable: &str, value: &Path| {
            let mut command = std::process::Command::new("sleep");
            command.arg("600").env(variable, value).spawn().expect("starts")
        };
        let mut ours = start(FLEET_VARIABLE, dirs[0].path());
        let mut inside = start(process::HOME_VARIABLE, &dirs[0].path().join("nodes/n1"));
        let mut other = start(FLEET_VARIABLE, dirs[1].path());
        process::send(inside.id(), Signal::SIGSTOP);
        assert_eq!(processes(dirs[0].path()).len(), 2);
        assert_eq!(end_processes(dirs[0].path()).await, Ok(2));
        assert_eq!(processes(dirs[1].path()), [other.id()]);
        other.kill().expect("kills");
        for child in [&mut ours, &mut inside, &mut other] {
            child.wait().expect("reaped");
        }
    }
}
