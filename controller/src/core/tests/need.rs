//! An edge that reaches no replica: when its word launches something, and what it never does.

use std::time::Duration;

use cic_common::id::{Incarnation, NodeId};
use cic_common::report::{NodeReport, Phase, Role};
use cic_common::wire::message::{Hello, NodeEvent};

use super::bench::*;
use crate::core::*;

fn gateway() -> NodeId {
    NodeId::new("gateway").expect("a label")
}

/// A gateway beside the controller.
fn connect_gateway(bench: &mut Bench) {
    let report = NodeReport { phase: Phase::Serving, ..NodeReport::booting() }.sealed(0);
    bench.give(Event::Connected(Hello {
        node: gateway(),
        incarnation: Incarnation(1),
        role: Role::Gateway,
        address: "127.0.0.1:2".to_owned(),
        version: "test".to_owned(),
        keeps_checkpoints: false,
        routes: None,
        report: report.clone(),
    }));
    bench.beats.insert(gateway(), (Incarnation(1), 0, report));
}

fn cry(bench: &mut Bench, model: &str) {
    let event = NodeEvent::ReplicasMissing { model: model.to_owned() };
    bench.give(Event::Told { node: gateway(), incarnation: Incarnation(1), event });
}

/// Lets `times` spans of 5 s pass, the gateway crying before each.
fn cry_on(bench: &mut Bench, times: u32) {
    for _ in 0..times {
        cry(bench, &deployment(1).model.name);
        bench.run(Duration::from_secs(5));
    }
}

fn all_fall_silent(bench: &mut Bench, count: usize) {
    for i in 0..count {
        bench.silence(&bench.node(i), PollFault::Timeout);
    }
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.belief(&bench.node(0)), Some(Belief::Silent));
}

fn said(bench: &Bench, kind: &str) -> usize {
    bench.notes.iter().filter(|note| note.kind == kind).count()
}

#[test]
fn a_missed_deployment_of_silent_nodes_is_replaced_at_once_once_each_and_nothing_is_terminated_for_it() {
    for replicas in [1, 2, 5] {
        let mut bench = Bench::serving(replicas);
        connect_gateway(&mut bench);
        let count = usize::from(replicas);
        all_fall_silent(&mut bench, count);
        assert_eq!(bench.launched.len(), count, "the grace runs and the silence of all holds launches");
        cry_on(&mut bench, 1);
        assert_eq!(bench.launched.len(), 2 * count);
        // It goes on for as long as the launched nodes take to boot, and buys nothing more.
        cry_on(&mut bench, 50);
        assert_eq!((bench.launched.len(), bench.terminated.len()), (2 * count, 0), "{replicas} replicas");
        assert_eq!(said(&bench, "replaced-at-once"), count);
        assert_eq!(said(&bench, "replicas-missing"), 1, "it is logged once, not each time it is repeated");
        let why = bench.fleet.view(bench.now);
        let trail = &why.nodes.iter().find(|node| node.node == bench.node(0)).expect("the node").trail;
        assert!(trail.iter().any(|(_, text)| text.contains("is launched in its place")), "{trail:?}");
    }
}

#[test]
fn an_edges_word_changes_nothing_while_a_node_is_believed_to_serve() {
    let mut bench = Bench::serving(3);
    connect_gateway(&mut bench);
    bench.silence(&bench.node(0), PollFault::Timeout);
    bench.run(Duration::from_secs(8));
    cry_on(&mut bench, 4);
    assert_eq!((bench.launched.len(), bench.terminated.len()), (3, 0));
    let noted = bench.notes.iter().find(|note| note.kind == "replicas-missing").expect("it is logged");
    assert!(noted.text.contains("2 are believed to serve: nothing is done"), "{}", noted.text);
}

#[test]
fn an_agent_that_is_started_anew_is_not_replaced_for_an_edges_word() {
    let mut bench = Bench::serving(1);
    connect_gateway(&mut bench);
    let node = bench.node(0);
    cry(&mut bench, &deployment(1).model.name);
    bench.silence(&node, PollFault::Refused);
    bench.give(Event::PollChannelLost { node: node.clone() });
    bench.run(Duration::from_secs(3));
    assert_eq!(bench.belief(&node), Some(Belief::Silent));
    cry(&mut bench, &deployment(1).model.name);
    bench.serve(&node, 2);
    bench.run(Duration::from_secs(20));
    assert_eq!(bench.launched.len(), 1);
}

#[test]
fn without_a_fresh_word_silence_is_waited_out_as_ever() {
    let mut bench = Bench::serving(1);
    connect_gateway(&mut bench);
    cry_on(&mut bench, 1);
    cry(&mut bench, "a model of nobody's");
    bench.run(Duration::from_secs(16));
    all_fall_silent(&mut bench, 1);
    bench.run(Duration::from_secs(30));
    assert_eq!(bench.launched.len(), 1);
    assert_eq!(said(&bench, "replicas-missing"), 1);
}

#[test]
fn what_a_lying_edge_buys_is_bounded_by_the_limit_of_launches() {
    let mut bench = Bench::serving(5);
    connect_gateway(&mut bench);
    // Whatever is launched speaks once and falls silent: the worst that can meet a word that never ends.
    for _ in 0..200 {
        for node in bench.launched.clone() {
            if !bench.beats.contains_key(&node) {
                bench.serve(&node, 1);
            }
            bench.silence(&node, PollFault::Timeout);
        }
        cry_on(&mut bench, 1);
    }
    let rules = BrakeRules::default();
    let windows = usize::try_from(1000 / rules.window.as_secs()).expect("few") + 1;
    assert!(bench.launched.len() <= windows * rules.launches_max as usize, "{}", bench.launched.len());
    assert!(bench.launched.len() <= 2 * 5 + 3 + bench.terminated.len(), "{}", bench.launched.len());
}

#[test]
fn a_node_that_returns_after_it_was_replaced_at_once_serves_until_one_of_both_is_too_many() {
    let mut bench = Bench::serving(1);
    connect_gateway(&mut bench);
    let node = bench.node(0);
    all_fall_silent(&mut bench, 1);
    cry_on(&mut bench, 1);
    assert_eq!(bench.launched.len(), 2);
    bench.mute.clear();
    bench.deaf.clear();
    bench.run(Duration::from_secs(20));
    assert!(bench.routed.contains(&node));
    assert_eq!(bench.terminated, [bench.node(1)], "the newcomer, which serves nobody");
}
