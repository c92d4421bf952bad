//! What a fleet of real processes does when its parts are broken, on the stand-in engine.

use std::time::{Duration, Instant};

use fleet_tests::process::{DevFleet, Fault, Load, Options, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn fleet(env: &[(&str, &str)]) -> (DevFleet, Vec<String>) {
    let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let mut fleet = DevFleet::start(&Options { env, ..Options::default() }).expect("a fleet");
    let serving = fleet.wait_serving(2, SOON).expect("two replicas serve");
    (fleet, serving)
}

/// The name clients ask for.
fn model(fleet: &DevFleet) -> String {
    let answer = request(&fleet.edge, "GET", "/v1/models", None, SOON).expect("models").json().expect("JSON");
    answer["data"][0]["id"].as_str().expect("a model").to_owned()
}

fn engine_pid(node: &Value) -> u64 {
    node["report"]["engine"]["pid"].as_u64().expect("an engine pid")
}

fn is_routed(fleet: &DevFleet, node: &str) -> bool {
    fleet.node(node).is_some_and(|node| node["is_routed"] == true)
}

#[test]
fn a_killed_node_is_replaced_and_no_request_fails() {
    let (mut fleet, serving) = fleet(&[]);
    let load = Load::start(&fleet.edge, &model(&fleet), 4);
    fleet.fault(&serving[0], Fault::Kill).expect("fault");
    let dead = serving[0].clone();
    fleet.wait_for("route-out", SOON, |fleet| (!is_routed(fleet, &dead)).then_some(())).expect("routed out");
    fleet.wait_serving(2, SOON).expect("the replacement serves");
    fleet.wait_for("removal", SOON, |fleet| fleet.node(&dead).is_none().then_some(())).expect("given back");
    let seen = load.stop();
    assert!(seen.good > 20, "{seen:?}");
    assert!(seen.failed.is_empty(), "{seen:?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_frozen_node_is_silent_then_replaced_and_terminated_only_after_its_replacement_serves() {
    let (mut fleet, serving) = fleet(&[("CIC_TIMING_PARTITION_GRACE_MS", "4000")]);
    let load = Load::start(&fleet.edge, &model(&fleet), 2);
    let frozen = serving[0].clone();
    fleet.fault(&frozen, Fault::Freeze).expect("fault");
    let silent = |fleet: &mut DevFleet| fleet.node(&frozen).filter(|node| node["belief"] == "silent");
    fleet.wait_for("silence", SOON, silent).expect("silent");
    let served_before_gone = fleet
        .wait_for("removal", SOON, |fleet| match fleet.node(&frozen) {
            None => Some(fleet.serving().len()),
            Some(_) => None,
        })
        .expect("terminated");
    assert_eq!(served_before_gone, 2);
    let seen = load.stop();
    assert!(seen.failed.is_empty(), "{seen:?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_killed_agent_comes_back_and_adopts_its_engine() {
    let (mut fleet, serving) = fleet(&[]);
    let node = serving[0].clone();
    let before = fleet.node(&node).expect("the node");
    fleet.fault(&node, Fault::KillAgent).expect("fault");
    let after = fleet
        .wait_for("adoption", SOON, |fleet| {
            let now = fleet.node(&node)?;
            let is_new = now["incarnation"].as_u64() > before["incarnation"].as_u64();
            (is_new && now["is_routed"] == true && now["report"]["phase"] == "serving").then_some(now)
        })
        .expect("serving again");
    assert_eq!(engine_pid(&before), engine_pid(&after));
    assert_eq!(after["report"]["engine"]["is_adopted"], true);
    assert_eq!(fleet.replicas().len(), 2, "nothing was replaced");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_partition_shorter_than_the_grace_is_routed_out_and_back() {
    let (mut fleet, serving) = fleet(&[]);
    let load = Load::start(&fleet.edge, &model(&fleet), 2);
    let node = serving[0].clone();
    fleet.fault(&node, Fault::Partition).expect("fault");
    fleet.wait_for("route-out", SOON, |fleet| (!is_routed(fleet, &node)).then_some(())).expect("routed out");
    fleet.fault(&node, Fault::Mend).expect("mend");
    fleet.wait_for("route-in", SOON, |fleet| is_routed(fleet, &node).then_some(())).expect("routed in");
    assert_eq!(fleet.replicas().len(), 2, "nothing was replaced");
    let seen = load.stop();
    assert!(seen.failed.is_empty(), "{seen:?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn traffic_goes_on_without_a_controller_and_the_next_one_knows_every_node_and_replaces_none() {
    let (mut fleet, serving) = fleet(&[]);
    let load = Load::start(&fleet.edge, &model(&fleet), 4);
    let term = |fleet: &DevFleet| {
        fleet.view().ok().and_then(|view| view["term"].as_u64().or(view["view"]["term"].as_u64()))
    };
    let before = term(&fleet);
    kill(Pid::from_raw(fleet.controller_pid().expect("controller")), Signal::SIGKILL).expect("killed");
    let began = Instant::now();
    let again = fleet
        .wait_for("the next controller", SOON, |fleet| {
            let is_next = term(fleet).is_some() && term(fleet) > before;
            is_next.then(|| fleet.serving()).filter(|serving| serving.len() == 2)
        })
        .expect("knows both");
    let took = began.elapsed();
    assert_eq!(again, serving);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let seen = load.stop();
    assert!(seen.good > 20 && seen.failed.is_empty(), "{seen:?}");
    let operations = fleet.events().expect("events");
    let launches = operations.iter().filter(|event| event["kind"] == "launch").count();
    assert_eq!(fleet.replicas().len(), 2, "{launches} launch events");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_node_given_notice_is_replaced_before_it_is_taken() {
    let (mut fleet, serving) = fleet(&[]);
    let node = serving[0].clone();
    fleet.fault(&node, Fault::Notice).expect("fault");
    fleet
        .wait_for("the replacement", SOON, |fleet| {
            let serving = fleet.serving();
            (serving.len() == 2 && !serving.contains(&node)).then_some(())
        })
        .expect("replaced");
    fleet.stop().expect("nothing is left");
}
