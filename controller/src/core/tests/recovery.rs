//! What is tried on an ill node before its place is taken.

use std::time::Duration;

use super::bench::*;
use crate::core::*;

fn reached(bench: &Bench) -> Vec<&'static str> {
    bench.reached.iter().map(|(way, _)| *way).collect()
}

#[test]
fn a_mute_agent_is_restarted_by_poll_then_over_ssh_then_people_are_told_and_it_stays() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.mute.insert(node.clone());
    let mut seen = Vec::new();
    for seconds in [14, 10, 40, 40, 600] {
        bench.run(Duration::from_secs(seconds));
        seen.push(reached(&bench).len());
    }
    assert_eq!(reached(&bench), ["ordered by poll", "restarted over ssh"]);
    assert_eq!(seen, [0, 1, 2, 2, 2]);
    assert!(bench.notes.iter().any(|note| note.kind == "mute" && note.severity == Severity::Alert));
    assert!(bench.routed.contains(&node), "it answers polls and serves");
    assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
}

#[test]
fn an_agent_that_is_down_is_restarted_over_ssh_within_the_grace_and_stays_if_that_helps() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.silence(&node, PollFault::Refused);
    bench.run(Duration::from_secs(20));
    assert_eq!(reached(&bench), ["asked over ssh", "restarted over ssh"]);
    bench.serve(&node, 2);
    bench.run(Duration::from_secs(120));
    assert!(bench.routed.contains(&node));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
}

#[test]
fn an_agent_that_stays_down_is_replaced_when_the_grace_is_over() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.silence(&node, PollFault::Refused);
    bench.run(Duration::from_secs(70));
    assert_eq!(bench.launched.len(), 3);
    let fresh = bench.node(2);
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.terminated, [node]);
}

#[test]
fn a_node_that_is_cut_off_is_only_asked_over_ssh() {
    let mut bench = Bench::serving(2);
    bench.silence(&bench.node(0), PollFault::Timeout);
    bench.run(Duration::from_secs(55));
    assert_eq!(reached(&bench), ["asked over ssh"; 2]);
}

#[test]
fn nobody_is_restarted_while_half_the_fleet_is_mute() {
    let mut bench = Bench::serving(4);
    for i in 0..3 {
        bench.mute.insert(bench.node(i));
    }
    bench.run(Duration::from_secs(300));
    assert_eq!(reached(&bench), [""; 0]);
    bench.mute.clear();
    bench.mute.insert(bench.node(0));
    bench.run(Duration::from_secs(20));
    assert_eq!(reached(&bench), ["ordered by poll"], "the fault was not here");
}

#[test]
fn an_agent_is_not_restarted_again_within_ten_minutes() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    for _ in 0..3 {
        bench.mute.insert(node.clone());
        bench.run(Duration::from_secs(30));
        bench.mute.clear();
        bench.run(Duration::from_secs(30));
    }
    assert_eq!(reached(&bench), ["ordered by poll"]);
}

#[test]
fn a_drain_goes_by_poll_where_the_control_stream_is_silent() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.mute.insert(node.clone());
    bench.run(Duration::from_secs(5));
    bench.give(Event::DrainAsked { node: node.clone(), reason: "test".to_owned() });
    bench.run(Duration::from_secs(2));
    assert_eq!(reached(&bench), ["ordered by poll"]);
}
