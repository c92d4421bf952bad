//! Detection with real processes on a network that loses packets: who is routed out, who is replaced, and what users see.
//!
//! Each test has a network namespace of its own with a fleet under `cic dev` in it. Rules of nft lose the packets of one
//! node's paths, or of all; signals stop processes. Every test prints one line.

mod apart;
mod slow_road;
mod trial;
mod wires;

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use self::slow_road::SlowRoad;
use self::trial::{Out, Seen, Trial};

/// From a loss of both paths to the route-out, at most. Missed heartbeats are noticed after 2.2 s on a calm link, 3 s at
/// most, and the poll fired then has 0.5 s.
const OUT_WITHIN: Duration = Duration::from_millis(3500);

/// From the return of a path to the route-in, at most: a silent node is polled every 2 s.
const BACK_WITHIN: Duration = Duration::from_secs(2);

/// An agent that restarts and adopts its engine answers polls after some 3 s.
const RESTART_WITHIN: Duration = Duration::from_secs(10);

/// From the moment that nothing passes on an edge's connection to the moment that its requests go on elsewhere: the
/// kernel gives one up after 8 s, the edge a stream after 12 s.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(14);

/// Two cores carry a dozen processes here, so that bounds are twice what is promised; the line shows the figure.
const SLACK: u32 = 2;

/// After the end of a fault, for what it might still set off.
const AFTERMATH: Duration = Duration::from_secs(5);

fn stop(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).expect("stopped");
}

fn go_on(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).expect("goes on");
}

/// That the one node was routed out in time and came back in time, and that nothing else was done.
fn assert_out_and_back(seen: &Seen, node: &str) {
    assert!(seen.outs.iter().all(|out| out.node == node), "{:?}", seen.outs);
    assert!(seen.out_after().is_some_and(|after| after < OUT_WITHIN * SLACK), "{seen}");
    assert!(seen.back_after.is_some_and(|after| after < BACK_WITHIN * SLACK), "{seen}");
    seen.assert_nothing_was_done();
}

fn assert_nobody_was_out(seen: &Seen) {
    assert!(seen.outs.is_empty(), "{:#?}", seen.outs);
    seen.assert_nothing_was_done();
}

#[test]
fn one_packet_in_a_hundred_lost_on_every_path_routes_nobody_out_for_a_second() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("random loss of 1 %, all nodes, both ways, 60 s", &[]);
    trial.lose(&trial.wires.loss(1));
    trial.wait_and_look(Duration::from_secs(60));
    trial.mend(|_| {});
    trial.wait_all_back();
    let seen = trial.end();
    let returns_at_once =
        |lasted: Option<Duration>| lasted.is_some_and(|lasted| lasted < Duration::from_secs(1));
    assert!(seen.outs.iter().all(|out| returns_at_once(out.lasted)), "{:#?}", seen.outs);
    seen.assert_nothing_was_done();
}

#[test]
fn one_packet_in_five_lost_on_every_path_replaces_nobody() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("random loss of 20 %, all nodes, both ways, 40 s", &[]);
    trial.lose(&trial.wires.loss(20));
    trial.wait_and_look(Duration::from_secs(40));
    trial.mend(|_| {});
    trial.wait_all_back();
    let seen = trial.end();
    seen.assert_nothing_was_done();
}

#[test]
fn connections_that_a_firewall_forgot_cost_a_wait_and_no_request() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("open connections to two nodes of three forgotten, 20 s", &[]);
    let forgotten: Vec<String> =
        trial.nodes[..2].iter().flat_map(|node| trial.wires.open_to(node).expect("sockets")).collect();
    trial.lose(&forgotten);
    trial.wait_and_look(Duration::from_secs(20));
    trial.mend(|_| {});
    trial.wait_all_back();
    let seen = trial.end();
    seen.assert_nothing_was_done();
    let longest = seen.longest.max(seen.longest_gap);
    assert!(longest < FORGOTTEN_WITHIN * SLACK, "{seen}");
}

#[test]
fn a_node_whose_pushes_are_lost_stays_routed() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("one way: pushes of a node lost, 30 s", &[]);
    trial.lose(&trial.wires.pushes(&trial.nodes[0]));
    trial.wait_and_look(Duration::from_secs(30));
    trial.mend(|_| {});
    trial.wait_all_back();
    let seen = trial.end();
    assert!(seen.beliefs.contains("suspect_push"), "{seen}");
    // An agent that stays mute may be told to restart: then it answers nobody for that moment.
    let restart = seen.first("restart-agent");
    let is_of_restart = |out: &Out| {
        restart.is_some_and(|at| out.after >= at) && out.lasted.is_some_and(|lasted| lasted < RESTART_WITHIN)
    };
    assert!(seen.outs.iter().all(is_of_restart), "restart {restart:?}; {:#?}", seen.outs);
    seen.assert_nothing_was_done();
}

#[test]
fn a_node_that_polls_do_not_reach_stays_routed() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("one way: polls of a node lost, 45 s", &[]);
    trial.lose(&trial.wires.polls(&trial.nodes[0]));
    trial.wait_and_look(Duration::from_secs(45));
    trial.mend(|_| {});
    trial.wait_all_back();
    let seen = trial.end();
    assert!(seen.beliefs.contains("suspect_poll") && !seen.beliefs.contains("silent"), "{seen}");
    assert_nobody_was_out(&seen);
}

#[test]
fn a_partition_shorter_than_its_grace_routes_a_node_out_and_back() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("two-way partition of a node, 20 s", &[]);
    let node = trial.nodes[0].clone();
    trial.lose(&trial.wires.partition(&node));
    trial.wait_and_look(Duration::from_secs(20));
    trial.mend(|_| {});
    trial.wait_all_back();
    trial.wait_and_look(AFTERMATH);
    assert_out_and_back(&trial.end(), &node);
}

#[test]
fn a_stopped_agent_is_routed_out_and_back_once_it_goes_on() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("SIGSTOP of an agent, 20 s", &[]);
    let node = trial.nodes[0].clone();
    let agent = trial.fleet.agent_pid(&node).expect("its agent");
    trial.begin(|_| stop(agent));
    trial.wait_and_look(Duration::from_secs(20));
    trial.mend(|_| go_on(agent));
    trial.wait_all_back();
    trial.wait_and_look(AFTERMATH);
    assert_out_and_back(&trial.end(), &node);
}

#[test]
fn a_detached_node_is_replaced_and_given_back_only_once_its_replacement_serves() {
    if !apart::is_inside() {
        return;
    }
    let mut trial =
        Trial::prepare("detach of a node for good, grace 5 s", &[("CIC_TIMING_PARTITION_GRACE_MS", "5000")]);
    let nodes = trial.nodes.clone();
    let node = nodes[0].as_str();
    trial.lose(&trial.wires.all_of(node));
    let when_gone = trial.wait_removed(node);
    trial.mend(|_| {});
    let seen = trial.end();
    assert_eq!(when_gone.serving().len(), 3, "{when_gone:#?}");
    assert!(seen.out_after().is_some_and(|after| after < OUT_WITHIN * SLACK), "{seen}");
    assert_eq!((seen.launches, seen.terminations), (1, 1), "{seen}");
    // Both are of one step where the new one is routed and the old one given back at once.
    let is_new =
        |event: &Value| event["node"].as_str().is_some_and(|name| nodes.iter().all(|node| node != name));
    let serves = |event: &Value| event["text"].as_str().is_some_and(|text| text.contains("-> serving"));
    let first = |is_it: &dyn Fn(&Value) -> bool| seen.events.iter().position(is_it);
    let served =
        first(&|event| event["kind"] == "phase" && is_new(event) && serves(event)).expect("a new one serves");
    let terminated = first(&|event| event["kind"] == "terminate").expect("one is given back");
    assert_eq!(seen.events[terminated]["node"], *node, "{:#?}", seen.events);
    assert!(served < terminated, "{:#?}", seen.events);
    seen.assert_no_request_failed();
}

#[test]
fn a_stopped_controller_blames_nobody_once_it_goes_on() {
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare("SIGSTOP of the controller, 8 s", &[]);
    let controller = trial.fleet.controller_pid().expect("a controller").cast_unsigned();
    trial.begin(|_| stop(controller));
    std::thread::sleep(Duration::from_secs(8)); // bounded wait: the length of the fault
    trial.mend(|_| go_on(controller));
    trial.wait_and_look(AFTERMATH * 3);
    trial.wait_all_back();
    assert_nobody_was_out(&trial.end());
}

#[test]
fn a_silence_of_the_whole_fleet_ends_and_replaces_nobody_and_no_request_fails() {
    /// Longer than the brake holds on: 30 s.
    const AFTER: Duration = Duration::from_secs(45);
    if !apart::is_inside() {
        return;
    }
    let mut trial = Trial::prepare(
        "silence of the whole fleet, 25 s, grace 10 s",
        &[("CIC_TIMING_PARTITION_GRACE_MS", "10000")],
    );
    trial.lose(&trial.wires.all_to_the_controller());
    trial.wait_and_look(Duration::from_secs(25));
    trial.mend(|_| {});
    trial.wait_all_back();
    trial.wait_and_look(AFTER);
    let seen = trial.end();
    assert!(seen.beliefs.contains("silent"), "{seen}");
    assert!(seen.events.iter().any(|event| event["kind"] == "hold"), "{:#?}", seen.events);
    seen.assert_nothing_was_done();
}

#[test]
fn pushes_that_come_300_ms_late_route_nobody_out() {
    if !apart::is_inside() {
        return;
    }
    let road = SlowRoad::open().expect("a road");
    let address = road.address.to_string();
    let mut trial = Trial::prepare_with(
        "pushes of all nodes 300 ms late, 20 s",
        &[("CIC_LOCAL_CONTROLLER_ADDRESS", &address)],
        |fleet| road.lead_to(wires::controller_port(fleet).expect("the controller's port")),
    );
    trial.begin(|_| road.delay(Duration::from_millis(300)));
    trial.wait_and_look(Duration::from_secs(20));
    trial.mend(|_| road.delay(Duration::ZERO));
    trial.wait_and_look(AFTERMATH);
    trial.wait_all_back();
    let seen = trial.end();
    assert!(road.delayed() > 60, "{} datagrams came late", road.delayed());
    assert_nobody_was_out(&seen);
}
