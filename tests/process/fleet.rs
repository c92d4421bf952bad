//! What a fleet of real processes does when its parts are broken, on the stand-in engine.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cic_common::time::unix_ms;
use fleet_tests::process::{DevFleet, Fault, Load, NOTICE_WITHIN, Options, Streams, View, request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

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

fn view(fleet: &DevFleet) -> View {
    fleet.view().expect("a view")
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}

fn wait_routed_out(fleet: &mut DevFleet, node: &str) {
    let look = |fleet: &mut DevFleet| (!fleet.view().ok()?.is_routed(node)).then_some(());
    fleet.wait_for("route-out", SOON, look).expect("routed out");
}

/// Waits until the node is gone and returns the view that no longer has it.
fn wait_removed(fleet: &mut DevFleet, node: &str) -> View {
    let look = |fleet: &mut DevFleet| fleet.view().ok().filter(|view| view.node(node).is_none());
    fleet.wait_for("removal", SOON, look).expect("given back")
}

#[test]
fn a_killed_node_is_replaced_and_no_request_fails() {
    let (mut fleet, serving) = fleet(&[]);
    let load = Load::start(&fleet.edge, &model(&fleet), 4);
    fleet.fault(&serving[0], Fault::Kill).expect("fault");
    wait_routed_out(&mut fleet, &serving[0]);
    fleet.wait_serving(2, SOON).expect("the replacement serves");
    wait_removed(&mut fleet, &serving[0]);
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
    let silent = |fleet: &mut DevFleet| {
        fleet.view().ok()?.node(&frozen).filter(|node| node["belief"] == "silent").map(drop)
    };
    fleet.wait_for("silence", SOON, silent).expect("silent");
    let when_gone = wait_removed(&mut fleet, &frozen);
    assert_eq!(when_gone.serving().len(), 2, "{when_gone:#?}");
    let seen = load.stop();
    assert!(seen.good > 0 && seen.failed.is_empty(), "{seen:?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_killed_agent_comes_back_and_adopts_its_engine() {
    let (mut fleet, serving) = fleet(&[]);
    let node = serving[0].clone();
    let before = view(&fleet).node(&node).expect("the node").clone();
    fleet.fault(&node, Fault::KillAgent).expect("fault");
    let after = fleet
        .wait_for("adoption", SOON, |fleet| {
            let now = fleet.view().ok()?.node(&node)?.clone();
            let is_new = now["incarnation"].as_u64() > before["incarnation"].as_u64();
            (is_new && now["is_routed"] == true && now["report"]["phase"] == "serving").then_some(now)
        })
        .expect("serving again");
    assert_eq!(engine_pid(&before), engine_pid(&after));
    assert_eq!(after["report"]["engine"]["is_adopted"], true);
    assert_eq!(view(&fleet).replicas.len(), 2, "nothing was replaced");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_partition_shorter_than_the_grace_is_routed_out_and_back() {
    let (mut fleet, serving) = fleet(&[]);
    let load = Load::start(&fleet.edge, &model(&fleet), 2);
    let node = serving[0].clone();
    fleet.fault(&node, Fault::Partition).expect("fault");
    wait_routed_out(&mut fleet, &node);
    fleet.fault(&node, Fault::Mend).expect("mend");
    let routed_in = |fleet: &mut DevFleet| fleet.view().ok()?.is_routed(&node).then_some(());
    fleet.wait_for("route-in", SOON, routed_in).expect("routed in");
    assert_eq!(view(&fleet).replicas.len(), 2, "nothing was replaced");
    let seen = load.stop();
    assert!(seen.good > 0 && seen.failed.is_empty(), "{seen:?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn traffic_goes_on_without_a_controller_and_the_next_one_knows_every_node_and_replaces_none() {
    let (mut fleet, serving) = fleet(&[]);
    let load = Load::start(&fleet.edge, &model(&fleet), 4);
    let (term, events) = (view(&fleet).term, fleet.events().expect("events"));
    kill(Pid::from_raw(fleet.controller_pid().expect("controller")), Signal::SIGKILL).expect("killed");
    let began = Instant::now();
    let again = fleet
        .wait_for("the next controller", SOON, |fleet| {
            let view = fleet.view().ok().filter(|view| view.term > term)?;
            Some(view.serving()).filter(|serving| serving.len() == 2)
        })
        .expect("knows both");
    let took = began.elapsed();
    assert_eq!(again, serving);
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Before it has settled a controller replaces nobody, so nothing is proved until then. The log is written in
    // order and after the view, which has the operations that the log may not hold yet.
    let settled = fleet
        .wait_for("the settled controller", SOON, |fleet| fleet.view().ok().filter(|view| view.is_settled))
        .expect("settled");
    let events_after = fleet
        .wait_for("the settled controller in the log", SOON, |fleet| {
            fleet.events().ok().filter(|now| count(now, "settled") > count(&events, "settled"))
        })
        .expect("settled");
    let seen = load.stop();
    assert!(seen.good > 20 && seen.failed.is_empty(), "{seen:?}");
    assert!(settled.term > term && settled.operations.is_empty(), "{settled:#?}");
    assert_eq!(settled.names(), serving);
    assert_eq!(count(&events_after, "launch"), count(&events, "launch"), "{events_after:#?}");
    assert_eq!(count(&events_after, "terminate"), 0, "{events_after:#?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_node_given_notice_is_replaced_before_it_is_taken_and_no_request_fails() {
    let (mut fleet, serving) = fleet(&[]);
    let load = Load::start(&fleet.edge, &model(&fleet), 2);
    let node = serving[0].clone();
    let given_at_unix_ms = unix_ms();
    fleet.fault(&node, Fault::Notice).expect("fault");
    wait_removed(&mut fleet, &node);
    let serving_now = fleet.wait_serving(2, SOON).expect("replaced");
    let replacement = serving_now.into_iter().find(|name| !serving.contains(name)).expect("a new node");
    let routed_in_at_unix_ms = fleet
        .wait_for("the replacement's route-in in the log", SOON, |fleet| {
            let events = fleet.events().ok()?;
            let is_in = |event: &&Value| event["kind"] == "route-in" && event["node"] == *replacement;
            events.iter().find(is_in)?["at_unix_ms"].as_u64()
        })
        .expect("routed in");
    let seen = load.stop();
    assert!(seen.good > 0 && seen.failed.is_empty(), "{seen:?}");
    let took = Duration::from_millis(routed_in_at_unix_ms - given_at_unix_ms);
    assert!(took < NOTICE_WITHIN, "{took:?}");
    fleet.stop().expect("nothing is left");
}

/// Longest that a node which falls silent again and again is kept out of the routes.
const FLAPS_OUT_MAX: Duration = Duration::from_secs(120);

/// An agent carries the streams of its engine to the peers' edges. One that is killed breaks those that it carries at that
/// moment (going on with them elsewhere is the edge's work), and no other, and none once it is back.
#[test]
fn an_agent_killed_again_and_again_breaks_no_stream_of_a_peers_edge_and_keeps_its_engine() {
    const KILLS: u32 = 20;
    let (mut fleet, serving) = fleet(&[]);
    let (victim, peer) = (serving[0].clone(), serving[1].clone());
    let before = view(&fleet).node(&victim).expect("the node").clone();
    let streams = Streams::start(&fleet.edge_of(&peer).expect("an edge"), &model(&fleet), 4, 16);
    let mut incarnation = before["incarnation"].as_u64();
    for number in 1..=KILLS {
        fleet.fault(&victim, Fault::KillAgent).expect("fault");
        let is_back = |fleet: &mut DevFleet| {
            let now = fleet.view().ok()?.node(&victim)?.clone();
            let is_new = now["incarnation"].as_u64() > incarnation;
            (is_new && now["belief"] == "alive" && now["report"]["phase"] == "serving").then_some(now)
        };
        let now = fleet.wait_for("adoption", SOON, is_back).expect("serving again");
        assert_eq!(engine_pid(&now), engine_pid(&before), "after kill {number}");
        incarnation = now["incarnation"].as_u64();
    }
    // Where the kills were told from silences, one that falls silent again and again is kept out for a while.
    let is_routed =
        |fleet: &mut DevFleet| (fleet.view().ok()?.node(&victim)?["is_routed"] == true).then_some(());
    fleet.wait_for("the route", FLAPS_OUT_MAX + SOON, is_routed).expect("routed again");
    let seen = streams.stop();
    println!(
        "{KILLS} kills: {} streams whole through the peer's edge, {} broken",
        seen.whole,
        seen.broken.len()
    );
    assert!(seen.whole > 100 && seen.refused.is_empty(), "{seen:?}");
    assert!(seen.broken.is_empty(), "{:?}", seen.broken);
    assert_eq!(view(&fleet).replicas.len(), 2, "nothing was replaced");
    fleet.stop().expect("nothing is left");
}

/// The node that answers a completion of `prompt`.
fn answering(edge: &str, model: &str, prompt: &str) -> String {
    let body = json!({ "model": model, "prompt": prompt, "max_tokens": 1 }).to_string();
    let answer = request(edge, "POST", "/v1/completions", Some(&body), SOON).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.header("x-cic-load"), None, "that is between nodes");
    answer.header("x-cic-node").expect("a node").to_owned()
}

#[test]
fn long_prompts_that_begin_alike_meet_at_one_replica_until_their_deployment_says_otherwise() {
    let (mut fleet, serving) = fleet(&[]);
    let (model, replica_edge) = (model(&fleet), fleet.edge_of(&serving[0]).expect("an edge"));
    let beginning = |number: u32| format!("Talk {number}: {}", "careful words ".repeat(80));
    let nodes = |fleet: &DevFleet, number: u32| -> BTreeSet<String> {
        let edges = [&fleet.edge, &replica_edge];
        let ask = |turn: usize| answering(edges[turn % 2], &model, &format!("{}{turn}", beginning(number)));
        (0..6).map(ask).collect()
    };
    let by_talk: Vec<BTreeSet<String>> = (0..8).map(|number| nodes(&fleet, number)).collect();
    assert!(
        by_talk.iter().all(|nodes| nodes.len() == 1),
        "each talk at one node, from both edges: {by_talk:?}"
    );
    let all: BTreeSet<&String> = by_talk.iter().flatten().collect();
    assert_eq!(all.len(), 2, "eight talks use both: {by_talk:?}");

    let get =
        |path: &str| request(&fleet.api, "GET", path, None, SOON).expect("answers").json().expect("JSON");
    let known = get("/v1/deployments")["deployments"][0]["deployment"].clone();
    assert_eq!(known["routing"]["prefix_affinity"], true);
    let wanted = json!({
        "model": known["model"], "engine": known["engine"], "replicas": known["replicas"],
        "replicas_min": known["replicas_min"], "zone": known["zone"], "routing": { "prefix_affinity": false },
    });
    let path = format!("/v1/deployments/{}", known["name"].as_str().expect("a name"));
    let answer = request(&fleet.api, "PUT", &path, Some(&wanted.to_string()), SOON).expect("answers");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let spread = |fleet: &mut DevFleet| (nodes(fleet, 0).len() == 2).then_some(());
    fleet.wait_for("a table without affinity", SOON, spread).expect("both replicas answer one talk");
    let now = view(&fleet).serving().into_iter().collect::<BTreeSet<_>>();
    assert_eq!(now, serving.into_iter().collect(), "no node was touched");
    fleet.stop().expect("nothing is left");
}
