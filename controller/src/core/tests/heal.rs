//! A node that says it cannot heal, and one that heals after all.

use std::time::Duration;

use cic_common::gpu::{GpuAction, GpuHealth, GpuSummary, GpuVerdict};
use cic_common::id::{Incarnation, NodeId};
use cic_common::report::{EngineState, GpuReport, NodeReport, Phase};
use cic_common::wire::message::NodeEvent;

use super::bench::*;
use crate::core::*;

/// It serves, and its GPU is condemned.
fn condemn(bench: &mut Bench, node: &NodeId) {
    bench.change(node, |report| {
        let reason = "XID 95".to_owned();
        let verdict = GpuVerdict::Unhealthy { action: GpuAction::ResetGpu, reason };
        let gpu = GpuHealth {
            index: 0,
            verdict,
            memory_used: None,
            memory_total: None,
            utilization_percent: None,
            temperature_c: None,
        };
        report.gpu = GpuReport::Seen(GpuSummary { driver_version: None, gpus: vec![gpu] });
        report.wants_replacement = Some("GPU 0: reset the GPU: XID 95".to_owned());
    });
    bench.run(Duration::from_secs(2));
}

fn heal(bench: &mut Bench, node: &NodeId) {
    bench.change(node, |report| {
        report.gpu = GpuReport::Absent;
        report.wants_replacement = None;
    });
    bench.run(Duration::from_secs(2));
}

fn is_leaving(bench: &Bench, node: &NodeId) -> bool {
    let view = bench.fleet.view(bench.now);
    view.nodes.iter().any(|known| known.node == *node && known.leaving.is_some())
}

#[test]
fn a_serving_node_with_a_condemned_gpu_is_drained_only_after_its_replacement_serves() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    condemn(&mut bench, &node);
    bench.run(Duration::from_secs(200));
    assert_eq!((bench.launched.len(), bench.drains_sent, bench.terminated.len()), (3, 0, 0));
    assert!(bench.routed.contains(&node));
    let fresh = bench.node(2);
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(10));
    assert_eq!((bench.drains_sent, &bench.terminated[..]), (1, &[node][..]));
}

#[test]
fn a_node_that_heals_before_anything_was_taken_away_stays_and_the_newcomer_goes() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    condemn(&mut bench, &node);
    assert!(is_leaving(&bench, &node));
    heal(&mut bench, &node);
    assert!(!is_leaving(&bench, &node));
    assert!(bench.notes.iter().any(|note| note.kind == "reprieve"));
    let fresh = bench.node(2);
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(30));
    assert_eq!(bench.terminated, [fresh]);
    assert!(bench.routed.contains(&node));
}

#[test]
fn a_node_that_heals_after_its_drain_was_sent_goes_all_the_same() {
    for takes_it in [true, false] {
        let mut bench = Bench::serving(2);
        let node = bench.node(0);
        condemn(&mut bench, &node);
        if !takes_it {
            bench.stubborn.insert(node.clone());
        }
        let fresh = bench.node(2);
        bench.serve(&fresh, 1);
        assert_eq!(bench.drains_sent, 1);
        heal(&mut bench, &node);
        assert!(!bench.routed.contains(&node));
        bench.stubborn.clear();
        bench.run(Duration::from_secs(60));
        assert_eq!(bench.terminated, [node], "took the drain at once: {takes_it}");
    }
}

#[test]
fn silence_and_notice_do_not_slow_the_removal_of_a_node_that_cannot_heal() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_millis(100));
    let node = bench.node(0);
    bench.store_is_away = true;
    let failed = NodeReport {
        phase: Phase::Failed,
        wants_replacement: Some("bad flag".to_owned()),
        ..NodeReport::booting()
    };
    bench.connect(&node, 1, failed);
    bench.silence(&node, PollFault::Timeout);
    bench.run(Duration::from_secs(120));
    assert!(bench.terminated.is_empty());
    bench.store_returns();
    bench.run(Duration::from_secs(40));
    assert_eq!(bench.terminated, [node], "nobody was served by it, so no replacement is waited for");
}

#[test]
fn a_node_given_up_again_and_again_is_one_failed_launch() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_millis(100));
    let node = bench.node(0);
    bench.store_is_away = true;
    let failing = NodeReport {
        phase: Phase::Loading,
        wants_replacement: Some("no VRAM".to_owned()),
        ..NodeReport::booting()
    };
    bench.connect(&node, 1, failing);
    for _ in 0..5 {
        bench.run(Duration::from_secs(2));
        heal(&mut bench, &node);
        bench.change(&node, |report| report.wants_replacement = Some("no VRAM".to_owned()));
    }
    let counted = bench.notes.iter().filter(|note| note.kind == "launch-backoff").count();
    assert_eq!(counted, 1);
    assert!(bench.launched.len() <= 2, "{:?}", bench.launched);
}

#[test]
fn a_late_wish_for_replacement_does_not_take_a_healed_node_away() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_millis(100));
    let node = bench.node(0);
    let loading = NodeReport { phase: Phase::Loading, ..NodeReport::booting() };
    bench.connect(&node, 1, loading);
    let event = NodeEvent::ReplacementWanted { reason: "no VRAM".to_owned() };
    bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(1), event });
    bench.run(Duration::from_secs(10));
    assert!(bench.terminated.is_empty() && !is_leaving(&bench, &node));
    bench.serve_as(&node, 1, EngineState::Ready);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.launched.len(), 1);
}
