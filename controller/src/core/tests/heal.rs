//! A node that says it cannot heal, and one that heals after all.

use std::time::Duration;

use cic_common::gpu::{GpuAction, GpuHealth, GpuSummary, GpuVerdict};
use cic_common::id::{Incarnation, NodeId};
use cic_common::notice::NoticeKind;
use cic_common::report::{EngineReport, EngineState, GpuReport, NodeReport, Phase};
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

/// An engine that runs while its agent says that it loads.
fn loads(state: EngineState, is_adopted: bool) -> EngineReport {
    EngineReport { state, pid: Some(7), is_adopted, ..EngineReport::absent() }
}

/// How a node comes to load with an engine that served: by its agent's restart, by failed probes, and the latter or
/// both under a controller that never saw it serve. Each with whether the controller is new.
const LOADS_AFTER_SERVING: [(&str, EngineState, bool, bool); 4] = [
    ("its agent restarts", EngineState::Starting, true, false),
    ("its probes fail", EngineState::Unready, false, false),
    ("its agent restarts, as does the controller", EngineState::Starting, true, true),
    ("its probes fail, and the controller restarts", EngineState::Unready, false, true),
];

#[test]
fn an_engine_that_served_goes_only_when_enough_others_serve_though_its_node_says_that_it_loads() {
    let cause_of = |bench: &mut Bench, node: &NodeId, asks: bool| {
        if asks {
            bench.give(Event::ReplaceAsked { node: node.clone(), reason: "test".to_owned() });
        } else {
            condemn(bench, node);
        }
    };
    for asks in [false, true] {
        for (what, state, is_adopted, is_new_controller) in LOADS_AFTER_SERVING {
            let mut bench = Bench::serving(2);
            let node = bench.node(0);
            cause_of(&mut bench, &node, asks);
            let fresh = bench.node(2);
            if is_adopted {
                let wants_replacement = (!asks).then(|| "GPU 0: reset the GPU: XID 95".to_owned());
                let report = NodeReport {
                    phase: Phase::Loading,
                    engine: loads(state, true),
                    wants_replacement,
                    ..NodeReport::booting()
                };
                bench.connect(&node, 2, report);
            } else {
                bench.change(&node, |report| {
                    (report.phase, report.engine) = (Phase::Loading, loads(state, false));
                });
            }
            if is_new_controller {
                let mut second = Bench::with(2, bench.stored(2));
                for (node, (incarnation, _, report)) in bench.beats.clone() {
                    second.connect(&node, incarnation.0, report);
                }
                second.instances = bench.instances.clone();
                bench = second;
            }
            bench.run(Duration::from_secs(200));
            assert!(bench.terminated.is_empty() && bench.drains_sent == 0, "{what}, asked: {asks}");
            bench.serve(&fresh, 1);
            bench.run(Duration::from_secs(20));
            assert_eq!(bench.terminated, std::slice::from_ref(&node), "{what}, asked: {asks}");
            assert_eq!(bench.drains_sent, 1, "what it took before may still run: {what}");
        }
    }
}

#[test]
fn a_node_that_cannot_heal_and_drains_itself_is_left_to_finish() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    condemn(&mut bench, &node);
    let fresh = bench.node(2);
    bench.change(&node, |report| {
        report.phase = Phase::Draining;
        report.notice = Some(notice(NoticeKind::Terminate, "1", 110_000));
    });
    bench.run(Duration::from_secs(100));
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(10));
    assert!(bench.terminated.is_empty(), "its streams run, whoever else serves");
    bench.change(&node, |report| report.phase = Phase::Stopped);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.terminated, [node]);
}

#[test]
fn a_drain_of_its_own_does_not_last_for_ever() {
    let timing = Timing::default();
    let max_ms = (timing.drain * 2 + timing.partition_grace).as_millis() as u64;
    for (phase_for_ms, left_ms, is_over) in [
        (0, None, false),
        (max_ms, None, false),
        (max_ms + 1, None, true),
        (max_ms + 1, Some(1), false),
        (max_ms + 1, Some(0), true),
    ] {
        let mut bench = Bench::serving(2);
        let node = bench.node(0);
        condemn(&mut bench, &node);
        bench.change(&node, |report| {
            (report.phase, report.phase_for_ms) = (Phase::Draining, phase_for_ms);
            report.notice = left_ms.map(|left_ms| notice(NoticeKind::Stop, "1", left_ms));
        });
        bench.run(Duration::from_secs(10));
        assert_eq!(bench.terminated.len(), usize::from(is_over), "{phase_for_ms} ms, left {left_ms:?}");
    }
}

#[test]
fn a_drain_that_becomes_overdue_by_time_alone_is_noticed() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    condemn(&mut bench, &node);
    bench.change(&node, |report| report.phase = Phase::Draining);
    bench.run(Duration::from_secs(60));
    bench.change(&node, |report| report.phase_for_ms = 600_000);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.terminated, [node], "the report changed in a figure only");
}

#[test]
fn a_node_that_never_served_or_has_no_engine_left_goes_without_waiting() {
    for (what, has_served, phase, engine) in [
        ("a start that failed", false, Phase::Failed, EngineReport::absent()),
        ("a start tried again", false, Phase::Loading, loads(EngineState::Starting, false)),
        ("an engine that ended for good", true, Phase::Failed, EngineReport::absent()),
        ("an engine that waits for its next start", true, Phase::Loading, EngineReport::absent()),
    ] {
        let mut bench = Bench::new(1);
        bench.run(Duration::from_millis(100));
        let node = bench.node(0);
        if has_served {
            bench.serve(&node, 1);
            bench.run(Duration::from_secs(12));
        }
        let wants_replacement = Some("no VRAM".to_owned());
        bench.connect(&node, 1, NodeReport { phase, engine, wants_replacement, ..NodeReport::booting() });
        bench.run(Duration::from_secs(5));
        assert_eq!(bench.terminated, [node], "{what}");
    }
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
