//! Nothing is left: every process of a fleet, found by what it carries in its environment.

use std::path::Path;
use std::time::Duration;

use cic_common::mounts::detach_below;
use nix::sys::signal::Signal;

use super::super::failure::Failure;
use super::super::processes;
use crate::provision::local::{MachineRecord, homes, process};

/// What machines get to shut their agents and engines down, and to kill what is left after 3 s.
const MACHINES_WITHIN: Duration = Duration::from_secs(5);

/// After SIGKILL a process goes unless it hangs in the kernel.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// Ends every process of the fleet in `dir`: machines by SIGTERM, so that engines end in order, then whatever is
/// left by SIGKILL. What its nodes had mounted goes too, so that removing `dir` removes nothing behind it. Returns how many
/// processes there were.
///
/// # Errors
/// Names what remains all the same.
pub(super) async fn end_processes(dir: &Path) -> Result<usize, Failure> {
    let found_count = processes::of_fleet(dir).len();
    end_machines(dir).await;
    if process::kill_all(KILL_WITHIN, || processes::of_fleet(dir)).await {
        let stays = |error| Failure::new(format!("what is mounted below {} stays: {error}", dir.display()));
        return detach_below(dir).map(|()| found_count).map_err(stays);
    }
    let left = processes::of_fleet(dir).iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
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
        processes::of_fleet(dir).iter().for_each(|pid| process::send(*pid, Signal::SIGCONT));
    }
    process::wait_until(MACHINES_WITHIN, || !machines.iter().any(MachineRecord::is_running)).await;
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
        let mut ours = start(processes::FLEET_VARIABLE, dirs[0].path());
        let mut inside = start(process::HOME_VARIABLE, &dirs[0].path().join("nodes/n1"));
        let mut other = start(processes::FLEET_VARIABLE, dirs[1].path());
        process::send(inside.id(), Signal::SIGSTOP);
        assert_eq!(processes::of_fleet(dirs[0].path()).len(), 2);
        assert_eq!(end_processes(dirs[0].path()).await, Ok(2));
        assert_eq!(processes::of_fleet(dirs[1].path()), [other.id()]);
        other.kill().expect("kills");
        for child in [&mut ours, &mut inside, &mut other] {
            child.wait().expect("reaped");
        }
    }
}
