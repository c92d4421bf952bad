//! Two hundred streams while replicas are killed, drained, or killed with no controller: each is what it would have been.

use std::time::Duration;

use anyhow::Context as _;
use fleet_tests::process::{DevFleet, Options, Strike};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scenario::{NO_BRAKE, Scenario, wait_until};

const SOON: Duration = Duration::from_secs(60);

fn on_stand_ins(name: &'static str, strikes: &'static [Strike], env: &[(&str, &str)]) -> Scenario {
    let env =
        NO_BRAKE.iter().chain(env).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    // Streams of two to four seconds: long enough for several to be on a replica when it is struck.
    let engine_args = vec!["--standin-token-ms=40".to_owned()];
    Scenario {
        name,
        fleet: Options { replicas: 3, engine_args, env, ..Options::default() },
        strikes,
        streams_min: 200,
        cuts_min: 60,
        clients: 30,
        tokens_max: 100,
        serving_min: 2,
        rests_between: false,
        moment_max: Duration::from_millis(5000),
        start_within: SOON,
        heal_within: SOON,
        run_within: Duration::from_secs(150),
    }
}

#[test]
fn two_hundred_streams_are_whole_though_their_replicas_are_killed() {
    use Strike::{Agent, Engine, EngineCore, EngineStop, Node};
    let strikes = &[Engine, Node, EngineCore, Agent, EngineStop, Node];
    on_stand_ins("kills", strikes, &[]).run(|_| Ok(())).expect("a run").check();
}

#[test]
fn two_hundred_streams_are_whole_though_their_replicas_are_drained_before_they_end() {
    // Shorter than the streams, which are cut when it is over.
    let scenario = on_stand_ins("drains", &[Strike::Drain], &[("CIC_TIMING_DRAIN_MS", "300")]);
    scenario.run(|_| Ok(())).expect("a run").check();
}

#[test]
fn two_hundred_streams_are_whole_though_there_is_no_controller_and_replicas_are_killed() {
    use Strike::{Agent, Engine, EngineCore, EngineStop};
    let scenario = on_stand_ins("no controller", &[Engine, Agent, EngineCore, Agent, EngineStop, Agent], &[]);
    scenario.run(lose_the_controller).expect("a run").check();
}

/// Takes the controller away for good: its database is moved, and what lies in its place lets none start again.
pub(crate) fn lose_the_controller(fleet: &mut DevFleet) -> anyhow::Result<()> {
    let database = fleet.path().join("controller/controller.db");
    let pid = fleet.controller_pid()?;
    for ending in ["", "-wal", "-shm"] {
        let file = database.with_extension(format!("db{ending}"));
        if file.exists() {
            std::fs::rename(&file, file.with_extension(format!("gone{ending}")))
                .context("move the database")?;
        }
    }
    std::fs::create_dir(&database).context("put something in its place")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    wait_until("no API answers", SOON, || fleet.view().is_err())
}
