//! The same with two real vLLM at float32: what a stand-in cannot prove, that the rest of a stream is the one it would have
//! had. A vLLM takes a minute to start again beside another, so only a short run is part of the suite; the rest is run by
//! hand: `cargo nextest run -p fleet-tests --test edge --no-capture --run-ignored only`.

use std::time::Duration;

use fleet_tests::process::{DevFleet, ONE_THREAD, Options, SoloOptions, Strike, Striker};

use crate::continuity::lose_the_controller;
use crate::foreign::{BenchSize, bench_under_kills};
use crate::scenario::{NO_BRAKE, Scenario};

/// Two vLLM that start beside each other on two cores, with other tests at work.
const LOADED: Duration = Duration::from_secs(400);

const MOMENT_MAX: Duration = Duration::from_secs(4);

/// A fifth of what one engine can do, for long enough that the benchmark outlasts three starts of an engine beside it. An
/// engine that starts takes both cores of a small machine: a pause here is mostly the other one's. It is printed; what is held
/// against the promise is the one with stand-ins.
const BENCH: BenchSize = BenchSize { prompts: 1500, output_len: 200, rate: Some(3), stall_max_s: 60.0 };

fn options(env: &[(&str, &str)]) -> Options {
    let env =
        NO_BRAKE.iter().chain(env).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Options { engine: "vllm", env, ..Options::default() }
}

/// `None`, with a word, where the real engine is not installed.
fn on_real_engines(name: &'static str, strikes: &'static [Strike], env: &[(&str, &str)]) -> Option<Scenario> {
    SoloOptions::real()?;
    Some(Scenario {
        name,
        fleet: options(env),
        strikes,
        streams_min: 200,
        cuts_min: 60,
        clients: 24,
        tokens_max: 320,
        serving_min: 2,
        rests_between: true,
        moment_max: MOMENT_MAX,
        start_within: LOADED,
        heal_within: LOADED,
        run_within: Duration::from_secs(1500),
    })
}

#[test]
fn real_streams_are_whole_though_their_engine_is_killed() {
    let strikes = &[Strike::EngineCore, Strike::Engine];
    let Some(scenario) = on_real_engines("real vLLM killed, short", strikes, &[]) else { return };
    let scenario = Scenario { streams_min: 48, cuts_min: 8, ..scenario };
    scenario.run(|_| Ok(())).expect("a run").check();
}

#[test]
#[ignore = "ten minutes: a vLLM starts again after each of six kills"]
fn two_hundred_real_streams_are_whole_though_their_replicas_are_killed() {
    let strikes = &[Strike::Engine, Strike::EngineCore, Strike::Node, Strike::EngineStop];
    let Some(scenario) = on_real_engines("real vLLM killed", strikes, &[]) else { return };
    scenario.run(|_| Ok(())).expect("a run").check();
}

#[test]
#[ignore = "ten minutes: a vLLM starts for each of the drained"]
fn two_hundred_real_streams_are_whole_though_their_replicas_are_drained() {
    // Shorter than the streams, which are cut when it is over.
    let drain = [("CIC_TIMING_DRAIN_MS", "1000")];
    let Some(scenario) = on_real_engines("real vLLM drained", &[Strike::Drain], &drain) else { return };
    scenario.run(|_| Ok(())).expect("a run").check();
}

#[test]
#[ignore = "ten minutes: a vLLM starts again after each of six kills"]
fn two_hundred_real_streams_are_whole_though_there_is_no_controller_and_engines_are_killed() {
    let strikes = &[Strike::Engine, Strike::EngineCore, Strike::EngineStop];
    let Some(scenario) = on_real_engines("real vLLM, no controller", strikes, &[]) else { return };
    scenario.run(lose_the_controller).expect("a run").check();
}

#[test]
#[ignore = "eight minutes: a vLLM starts for each node that lost power"]
fn vllms_own_benchmark_sees_no_failure_of_real_engines_when_nodes_lose_power() {
    if SoloOptions::real().is_none() {
        return;
    }
    let mut fleet = DevFleet::start(&options(&ONE_THREAD)).expect("a fleet");
    fleet.wait_serving(2, LOADED).expect("two replicas serve");
    let mut striker = Striker::new(&[Strike::Node], 2, MOMENT_MAX, LOADED);
    bench_under_kills(&fleet, &mut striker, BENCH).expect("no failure");
    fleet.stop().expect("nothing is left");
}
