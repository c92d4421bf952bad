//! Processes of local nodes and fleets, found by what they carry in their environment.
//!
//! Machine, agent and engine carry the machine's tag; the agent gives its engine two variables more, the node and the
//! agent's state directory, by which an engine is known on a real VM too.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::provision::local::{Home, process};

/// Environment variable of every process that `cic dev` starts itself, with the fleet's directory.
pub(super) const FLEET_VARIABLE: &str = "CIC_FLEET";

/// Environment variable that an agent gives its engine, with the agent's state directory.
const ENGINE_VARIABLE: &str = "CIC_STATE_DIR";

/// Living processes of one VM: machine, agent and engine.
pub(super) fn of_home(home: &Home) -> Vec<u32> {
    let machine = entry(process::HOME_VARIABLE, home.path(), "");
    let engine = entry(ENGINE_VARIABLE, &home.state(), "");
    carrying(|entry| entry == machine || entry == engine)
}

/// Living processes of the fleet in `dir`, this one excepted.
pub(super) fn of_fleet(dir: &Path) -> Vec<u32> {
    let own = entry(FLEET_VARIABLE, dir, "");
    let machines = entry(process::HOME_VARIABLE, dir, "/");
    let engines = entry(ENGINE_VARIABLE, dir, "/");
    carrying(|entry| entry == own || entry.starts_with(&machines) || entry.starts_with(&engines))
}

fn entry(variable: &str, value: &Path, end: &str) -> Vec<u8> {
    [variable.as_bytes(), b"=", value.as_os_str().as_bytes(), end.as_bytes()].concat()
}

fn carrying(is_ours: impl Fn(&[u8]) -> bool) -> Vec<u32> {
    process::marked(|environment| environment.split(|byte| *byte == 0).any(&is_ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::time::Duration;

    fn start(variable: &str, value: &Path) -> Child {
        let mut command = Command::new("sleep");
        command.arg("600").env(variable, value).spawn().expect("starts")
    }

    #[tokio::test]
    async fn machine_agent_and_engine_of_a_node_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().expect("directory");
        let homes = ["n1", "n10"].map(|name| Home::at(&dir.path().join("nodes").join(name)));
        let mut agent = start(process::HOME_VARIABLE, homes[0].path());
        let mut engine = start(ENGINE_VARIABLE, &homes[0].state());
        let mut other = start(ENGINE_VARIABLE, &homes[1].state());
        let mut found = of_home(&homes[0]);
        found.sort_unstable();
        let mut expected = [agent.id(), engine.id()];
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(of_fleet(dir.path()).len(), 3);
        assert!(process::kill_all(Duration::from_secs(10), || of_home(&homes[0])).await);
        assert_eq!(of_fleet(dir.path()), [other.id()]);
        other.kill().expect("kills");
        for child in [&mut agent, &mut engine, &mut other] {
            child.wait().expect("reaped");
        }
    }
}
