//! An engine that has work of which nothing moves: routed out beside others, and counted for nobody.

use std::time::Duration;

use cic_common::report::EngineState;

use super::bench::*;
use crate::core::*;

#[test]
fn a_stalled_replica_is_routed_out_while_another_works_and_back_when_it_moves() {
    let mut bench = Bench::serving(2);
    let (stalled, other) = (bench.node(0), bench.node(1));
    bench.engine(&stalled, EngineState::Stalled);
    bench.run(Duration::from_secs(2));
    assert_eq!(bench.routed.iter().collect::<Vec<_>>(), [&other]);
    let out = bench.notes.iter().find(|note| note.kind == "route-out").expect("told");
    assert!(out.text.ends_with("serving, its engine stalled"), "{}", out.text);
    bench.engine(&stalled, EngineState::Ready);
    bench.run(Duration::from_secs(2));
    assert_eq!(bench.routed.len(), 2);
}

#[test]
fn a_stall_that_a_poll_brings_is_noticed_too() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.mute.insert(node.clone());
    bench.engine(&node, EngineState::Stalled);
    bench.run(Duration::from_secs(12));
    assert!(!bench.routed.contains(&node));
}

#[test]
fn the_last_serving_replicas_stay_routed_however_stalled() {
    let mut bench = Bench::serving(2);
    let nodes = [bench.node(0), bench.node(1)];
    for (count, node) in nodes.iter().enumerate() {
        bench.engine(node, EngineState::Stalled);
        bench.run(Duration::from_secs(2));
        assert_eq!(bench.routed.len(), if count == 0 { 1 } else { 2 });
    }
    bench.silence(&nodes[0], PollFault::Timeout);
    bench.run(Duration::from_secs(20));
    assert_eq!(
        bench.routed.iter().collect::<Vec<_>>(),
        [&nodes[1]],
        "a silent one is worse than a stalled one"
    );
}

#[test]
fn a_stall_alone_launches_and_removes_nothing() {
    let mut bench = Bench::serving(2);
    bench.engine(&bench.node(0), EngineState::Stalled);
    bench.run(Duration::from_secs(600));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
    let view = bench.fleet.view(bench.now);
    let shown = &view.deployments[0];
    assert_eq!((shown.serving, shown.stalled, shown.coming, shown.leaving), (1, 1, 0, 0));
}

/// What each of three nodes does, the first of which a person wants replaced; two are wanted.
#[test]
fn a_stalled_node_is_no_replacement_for_another() {
    use EngineState::{Ready, Stalled};
    for (engines, may_go) in [
        ([Ready, Ready, Ready], true),
        ([Stalled, Ready, Ready], true),
        ([Ready, Stalled, Ready], false),
        ([Ready, Stalled, Stalled], false),
        ([Stalled, Stalled, Ready], false),
    ] {
        let mut bench = Bench::serving(2);
        bench.engine(&bench.node(0), engines[0]);
        bench.engine(&bench.node(1), engines[1]);
        bench.run(Duration::from_secs(2));
        bench.give(Event::ReplaceAsked { node: bench.node(0), reason: "test".to_owned() });
        let fresh = bench.node(2);
        bench.serve_as(&fresh, 1, engines[2]);
        bench.run(Duration::from_secs(120));
        let gone = if may_go { vec![bench.node(0)] } else { Vec::new() };
        assert_eq!(bench.terminated, gone, "{engines:?}");
        assert_eq!(bench.launched.len(), 3, "{engines:?}");
        for i in 0..3 {
            bench.engine(&bench.node(i), Ready);
        }
        bench.run(Duration::from_secs(60));
        assert_eq!(bench.terminated, [bench.node(0)], "once all work again: {engines:?}");
    }
}

#[test]
fn a_drain_to_the_minimum_does_not_count_on_a_stalled_node() {
    let mut bench = Bench::serving(2);
    bench.give(Event::Deployed(Deployment { replicas_min: 1, ..deployment(2) }));
    bench.engine(&bench.node(1), EngineState::Stalled);
    bench.run(Duration::from_secs(2));
    bench.give(Event::DrainAsked { node: bench.node(0), reason: "test".to_owned() });
    bench.run(Duration::from_secs(30));
    assert!(bench.terminated.is_empty() && bench.routed.contains(&bench.node(0)));
    bench.engine(&bench.node(1), EngineState::Ready);
    bench.run(Duration::from_secs(30));
    assert_eq!(bench.terminated, [bench.node(0)]);
}

#[test]
fn of_one_too_many_the_stalled_goes() {
    let mut bench = Bench::serving(3);
    bench.engine(&bench.node(0), EngineState::Stalled);
    bench.run(Duration::from_secs(2));
    bench.give(Event::Deployed(deployment(2)));
    bench.run(Duration::from_secs(30));
    assert_eq!(bench.terminated, [bench.node(0)]);
}

#[test]
fn nobody_is_one_too_many_while_a_wanted_one_is_stalled() {
    let mut bench = Bench::serving(3);
    for i in 0..2 {
        bench.engine(&bench.node(i), EngineState::Stalled);
    }
    bench.run(Duration::from_secs(2));
    bench.give(Event::Deployed(deployment(2)));
    bench.run(Duration::from_secs(300));
    assert!(bench.terminated.is_empty());
}
