//! The fleet's rules, each driven from the outside by events. The table's rows are tested in `belief`, the
//! brake's limits in `brake`.

mod agree;
mod bench;
mod following;
mod gpu;
mod heal;
mod many;
mod need;
mod operation;
mod orphan;
mod reach;
mod recovery;
mod routing;
mod stall;
mod succession;
mod suspicion;

use std::time::Duration;

use cic_common::id::{Incarnation, NodeId};
use cic_common::notice::NoticeKind;
use cic_common::report::{Heartbeat, NodeReport, Phase};
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;

use self::bench::*;
use super::*;

#[test]
fn nothing_is_performed_before_it_is_recorded() {
    let mut fleet = Fleet::new(Timing::default(), BrakeRules::default());
    let mut out = Vec::new();
    fleet.step(Mono::ZERO, Event::Restored(Restored::default()), &mut out);
    fleet.step(Mono::ZERO, Event::Deployed(deployment(1)), &mut out);
    assert!(!out.iter().any(|a| matches!(a, Action::Record(_))), "what is there is not known yet");
    let listed = Event::Listed { provider: "local".to_owned(), result: Ok(Vec::new()) };
    fleet.step(Mono::ZERO, listed, &mut out);
    let recorded = out.iter().find_map(|a| if let Action::Record(op) = a { Some(op.id) } else { None });
    assert!(!out.iter().any(|a| matches!(a, Action::Launch { .. })));
    out.clear();
    fleet.step(Mono::ZERO, Event::Recorded { operation: recorded.expect("a launch was decided") }, &mut out);
    assert!(out.iter().any(|a| matches!(a, Action::Launch { .. })));
}

#[test]
fn a_killed_node_is_routed_out_within_a_second_and_replaced_when_the_cloud_confirms() {
    let mut bench = Bench::serving(2);
    let dead = bench.node(0);
    bench.silence(&dead, PollFault::Refused);
    bench.instances.insert(dead.clone(), InstanceState::Stopped);
    bench.give(Event::PollChannelLost { node: dead.clone() });
    assert!(bench.routed.contains(&dead), "one witness alone routes nobody out");
    bench.run(Duration::from_millis(700));
    assert!(!bench.routed.contains(&dead));
    bench.run(Duration::from_secs(3));
    assert_eq!(bench.launched.len(), 3);
    assert_eq!(bench.terminated, [dead], "a VM that the cloud denies is given back without waiting");
}

#[test]
fn a_frozen_node_is_terminated_only_after_its_replacement_serves() {
    let mut bench = Bench::serving(2);
    let frozen = bench.node(0);
    bench.silence(&frozen, PollFault::Timeout);
    bench.run(Duration::from_secs(30));
    assert_eq!(bench.belief(&frozen), Some(Belief::Silent));
    assert!(!bench.routed.contains(&frozen));
    assert_eq!(bench.launched.len(), 2, "the grace still runs");
    bench.run(Duration::from_secs(40));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (3, 0));
    let fresh = bench.node(2);
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.terminated, [frozen]);
}

#[test]
fn a_partition_shorter_than_the_grace_is_routed_out_and_back_and_replaces_nothing() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.silence(&node, PollFault::Timeout);
    bench.run(Duration::from_secs(20));
    assert!(!bench.routed.contains(&node));
    bench.mute.clear();
    bench.deaf.clear();
    bench.run(Duration::from_secs(80));
    assert!(bench.routed.contains(&node));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
}

#[test]
fn one_silent_witness_is_a_suspect_not_a_corpse() {
    let mut no_push = Bench::serving(2);
    let node = no_push.node(0);
    no_push.mute.insert(node.clone());
    no_push.run(Duration::from_secs(300));
    assert_eq!(no_push.belief(&node), Some(Belief::SuspectPush));
    let mut no_poll = Bench::serving(2);
    no_poll.deaf.insert(node.clone(), PollFault::Timeout);
    no_poll.run(Duration::from_secs(300));
    assert_eq!(no_poll.belief(&node), Some(Belief::SuspectPoll));
    for bench in [no_push, no_poll] {
        assert!(bench.routed.contains(&node));
        assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
    }
}

#[test]
fn a_failing_cloud_api_holds_terminations() {
    let mut bench = Bench::serving(3);
    let node = bench.node(0);
    bench.cloud_fails = true;
    bench.silence(&node, PollFault::Timeout);
    bench.run(Duration::from_secs(70));
    let fresh = bench.node(3);
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(300));
    assert!(bench.terminated.is_empty());
    bench.cloud_fails = false;
    bench.run(Duration::from_secs(40));
    assert_eq!(bench.terminated, [node]);
}

#[test]
fn silence_of_all_nodes_together_replaces_and_terminates_nobody_and_keeps_their_routes() {
    let mut bench = Bench::serving(3);
    for i in 0..3 {
        bench.silence(&bench.node(i), PollFault::Timeout);
    }
    bench.run(Duration::from_secs(200));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (3, 0));
    assert!(!bench.routed.is_empty(), "the edges may reach what this controller cannot");
    assert!(bench.notes.iter().any(|note| note.severity == Severity::Alert && note.kind == "hold"));
}

#[test]
fn a_node_that_returns_before_it_was_terminated_stays_and_the_newcomer_goes() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.silence(&node, PollFault::Timeout);
    bench.run(Duration::from_secs(70));
    assert_eq!(bench.launched.len(), 3);
    bench.mute.clear();
    bench.deaf.clear();
    bench.run(Duration::from_secs(20));
    assert!(bench.routed.contains(&node));
    assert_eq!(bench.terminated, [bench.node(2)]);
}

#[test]
fn a_notice_orders_the_replacement_at_once() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    let event = NodeEvent::NoticeSeen { notice: notice(NoticeKind::Terminate, "a", 120_000) };
    bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(1), event });
    assert_eq!(bench.launched.len(), 3);
    assert!(bench.terminated.is_empty(), "the window is the node's to use");
}

#[test]
fn a_notice_that_takes_the_node_overrides_the_advice_before_it() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    for notice in [notice(NoticeKind::Rebalance, "r", 0), notice(NoticeKind::Terminate, "a", 120_000)] {
        let event = NodeEvent::NoticeSeen { notice };
        bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(1), event });
    }
    assert_eq!(bench.launched.len(), 3, "one for the spare, which then takes its place");
}

#[test]
fn a_notice_stands_over_a_restart_of_the_agent_until_every_source_was_read() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Terminate, "a", 120_000)));
    bench.run(Duration::from_secs(2));
    assert_eq!(bench.launched.len(), 3);
    let fresh = bench.node(2);
    // The agent starts anew, and has read nothing yet.
    bench.connect(&node, 2, NodeReport { phase: Phase::Serving, ..NodeReport::booting() });
    bench.run(Duration::from_secs(5));
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(5));
    let is_leaving = |bench: &Bench, node: &NodeId| {
        let view = bench.fleet.view(bench.now);
        view.nodes.iter().any(|one| one.node == *node && one.leaving.is_some())
    };
    assert!(is_leaving(&bench, &node) && bench.terminated.is_empty(), "nobody has taken the notice back");
    bench.change(&node, |report| report.spot = whole());
    bench.run(Duration::from_secs(5));
    assert!(!is_leaving(&bench, &node), "now it is known to be gone");
}

#[test]
fn a_standing_notice_gives_way_to_a_graver_one_alone_and_is_over_when_lifted_or_long_past() {
    let is_leaving = |bench: &Bench, node: &NodeId| {
        let view = bench.fleet.view(bench.now);
        view.nodes.iter().any(|one| one.node == *node && one.leaving.is_some())
    };
    let restarted = || {
        let mut bench = Bench::serving(2);
        let node = bench.node(0);
        bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Terminate, "a", 120_000)));
        bench.run(Duration::from_secs(2));
        bench.connect(&node, 2, NodeReport { phase: Phase::Serving, ..NodeReport::booting() });
        bench.run(Duration::from_secs(2));
        assert!(is_leaving(&bench, &node));
        (bench, node)
    };
    let (mut bench, node) = restarted();
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Rebalance, "r", 0)));
    bench.run(Duration::from_secs(2));
    assert!(is_leaving(&bench, &node), "advice is less than what stands");

    let event = NodeEvent::NoticeLifted { source: "file".to_owned(), id: "a".to_owned() };
    bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(2), event });
    bench.run(Duration::from_secs(2));
    assert!(!is_leaving(&bench, &node), "its own source took it back");

    // No source is ever read again, and nothing came of it.
    let (mut bench, node) = restarted();
    bench.run(Duration::from_secs(120 + 290));
    assert!(is_leaving(&bench, &node));
    bench.run(Duration::from_secs(20));
    assert!(!is_leaving(&bench, &node));
}

#[test]
fn a_notice_of_days_orders_the_replacement_half_an_hour_ahead() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Reboot, "a", 3_600_000)));
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.launched.len(), 2);
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Reboot, "a", 1_800_000)));
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.launched.len(), 3);
}

#[test]
fn advice_orders_one_spare_for_half_an_hour_and_takes_no_node() {
    let mut bench = Bench::serving(2);
    let advised = |report: &mut NodeReport| report.notice = Some(notice(NoticeKind::Rebalance, "r", 0));
    // Both are advised, and half of them get a spare.
    for index in [0, 1] {
        let node = bench.node(index);
        bench.change(&node, advised);
    }
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.launched.len(), 3);
    let spare = bench.node(2);
    bench.serve(&spare, 1);
    bench.run(Duration::from_secs(29 * 60));
    assert_eq!((bench.launched.len(), bench.terminated.len(), bench.routed.len()), (3, 0, 3));
    // Advice that comes and goes buys and sells nothing.
    for node in [bench.node(0), bench.node(1)] {
        bench.change(&node, |report| report.notice = None);
        bench.run(Duration::from_secs(5));
        bench.change(&node, advised);
    }
    bench.run(Duration::from_secs(90));
    assert_eq!(
        (bench.launched.len(), bench.routed.len()),
        (3, 2),
        "it came to nothing, and is ordered no more"
    );
    assert_eq!(bench.terminated, [spare]);
}

#[test]
fn a_spare_takes_the_place_of_the_advised_node_when_that_is_taken() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Rebalance, "r", 0)));
    bench.run(Duration::from_secs(5));
    let spare = bench.node(2);
    bench.serve(&spare, 1);
    bench.run(Duration::from_secs(5));
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Terminate, "a", 120_000)));
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.launched.len(), 3, "no other is launched");
    assert!(bench.terminated.is_empty());
}

#[test]
fn an_old_incarnation_changes_nothing() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.serve(&node, 5);
    bench.run(Duration::from_secs(2));
    let before = bench.fleet.view(bench.now);
    let stale = NodeReport { phase: Phase::Failed, ..NodeReport::booting() };
    let beat = |seq| Heartbeat {
        node: node.clone(),
        incarnation: Incarnation(4),
        seq,
        challenge: u64::MAX,
        report: stale.clone(),
    };
    bench.give(Event::Heartbeats(vec![beat(99_999)]));
    bench.give(Event::Disconnected { node: node.clone(), incarnation: Incarnation(4) });
    let event = NodeEvent::ReplacementWanted { reason: "old".to_owned() };
    bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(4), event });
    let after = bench.fleet.view(bench.now);
    assert_eq!(before.nodes, after.nodes);
    assert_eq!(before.routes, after.routes);
}

#[test]
fn a_restarted_controller_replaces_nobody_and_keeps_the_old_routes_until_it_has_settled() {
    let mut first = Bench::serving(2);
    first.run(Duration::from_secs(1));
    let mut second = Bench::with(2, first.stored(2));
    second.instances = first.instances.clone();
    for node in &first.launched {
        second.serve(node, 1);
    }
    second.run(Duration::from_secs(120));
    assert!(second.launched.is_empty() && second.terminated.is_empty());
    assert_eq!(second.routed.len(), 2);

    let mut alone = Bench::with(2, first.stored(2));
    alone.instances = first.instances;
    alone.run(Duration::from_secs(9));
    assert!(!alone.fleet.view(alone.now).is_settled);
    assert_eq!(alone.fleet.view(alone.now).routes.version, 0, "no table is published before settling");
}

#[test]
fn a_late_tick_of_our_own_is_not_evidence_against_anyone() {
    let mut bench = Bench::serving(2);
    bench.now = bench.now + Duration::from_secs(40);
    bench.give(Event::Tick);
    assert_eq!(bench.routed.len(), 2);
    bench.run(Duration::from_secs(5));
    assert!(bench.notes.iter().any(|note| note.kind == "own-stall"));
    assert_eq!((bench.launched.len(), bench.terminated.len(), bench.routed.len()), (2, 0, 2));
}

#[test]
fn launches_that_never_serve_come_ever_more_slowly() {
    let mut bench = Bench::new(1);
    let mut failed = 0;
    let failing = NodeReport {
        phase: Phase::Failed,
        wants_replacement: Some("bad flag".into()),
        ..NodeReport::booting()
    };
    while bench.now < Mono::from_millis(600_000) {
        bench.run(Duration::from_secs(1));
        if let Some(node) = bench.launched.get(failed).cloned() {
            failed += 1;
            bench.connect(&node, 1, failing.clone());
        }
    }
    assert!((4..=8).contains(&bench.launched.len()), "{} launches in 10 minutes", bench.launched.len());
    assert!(bench.instances.len() <= 2, "failed nodes are given back: {:?}", bench.instances);
}

#[test]
fn fewer_wanted_replicas_drain_the_youngest_first() {
    let mut bench = Bench::serving(3);
    bench.give(Event::Deployed(deployment(2)));
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.terminated.len(), 1);
    assert_eq!(bench.routed.len(), 2);
}

#[test]
fn a_drain_below_the_minimum_is_held() {
    let mut bench = Bench::serving(2);
    bench.give(Event::Deployed(Deployment { replicas_min: 2, ..deployment(2) }));
    let node = bench.node(0);
    bench.give(Event::DrainAsked { node: node.clone(), reason: "test".to_owned() });
    bench.run(Duration::from_secs(30));
    assert!(bench.terminated.is_empty());
    let fresh = bench.node(2);
    bench.serve(&fresh, 1);
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.terminated, [node]);
}

#[test]
fn what_an_operator_asked_for_is_done_by_the_next_controller() {
    let mut first = Bench::serving(2);
    let node = first.node(0);
    first.give(Event::ReplaceAsked { node: node.clone(), reason: "test".to_owned() });
    let mut second = Bench::with(2, first.stored(2));
    second.instances = first.instances.clone();
    for node in first.launched.clone() {
        second.serve(&node, 1);
    }
    second.run(Duration::from_secs(20));
    let fresh =
        second.launched.first().cloned().or_else(|| first.launched.get(2).cloned()).expect("launched");
    second.serve(&fresh, 1);
    second.run(Duration::from_secs(30));
    assert_eq!(second.terminated, [node]);
}

#[test]
fn a_drain_that_is_not_acknowledged_keeps_the_node_routed_out_and_alive() {
    let mut bench = Bench::serving(2);
    bench.stubborn.extend(bench.launched.clone());
    bench.give(Event::Deployed(deployment(1)));
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.routed.len(), 1);
    let node = bench.launched.iter().find(|node| !bench.routed.contains(*node)).cloned().expect("one");
    let version = bench.fleet.view(bench.now).routes.version;
    bench.run(Duration::from_secs(600));
    assert_eq!(bench.fleet.view(bench.now).routes.version, version, "the route does not flap");
    assert!(bench.terminated.is_empty() && (5..60).contains(&bench.drains_sent), "{}", bench.drains_sent);
    bench.stubborn.clear();
    bench.run(Duration::from_secs(60));
    assert_eq!(bench.terminated, [node]);
}

#[test]
fn a_node_that_answers_polls_is_not_too_slow() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_millis(100));
    let node = bench.node(0);
    bench.serve(&node, 1);
    bench.run(Duration::from_secs(12));
    let mut second = Bench::with(1, bench.stored(2));
    second.instances = bench.instances.clone();
    second.beats = bench.beats.clone();
    second.mute.insert(node);
    second.run(Timing::default().boot_grace * 2);
    assert!(second.launched.is_empty() && second.terminated.is_empty());
}

#[test]
fn a_node_that_connected_while_it_was_to_go_is_told_what_to_run_when_it_stays() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_millis(100));
    let node = bench.node(0);
    bench.store_is_away = true;
    bench.run(Timing::default().boot_grace + Duration::from_secs(1));
    let verdicts: Vec<_> = bench.notes.iter().filter(|note| note.kind == "replace").collect();
    assert_eq!(verdicts.len(), 1, "given up once: {verdicts:?}");
    bench.connect(&node, 1, NodeReport::booting());
    assert_eq!(bench.assigned, [node], "once, with its reprieve");
    bench.store_returns();
    bench.run(Duration::from_secs(60));
    assert!(bench.terminated.is_empty());
}

#[test]
fn a_surplus_node_whose_drain_was_not_sent_is_taken_back_before_another_is_launched() {
    let mut bench = Bench::serving(3);
    bench.store_is_away = true;
    bench.give(Event::Deployed(deployment(2)));
    bench.run(Duration::from_secs(5));
    bench.give(Event::Deployed(deployment(3)));
    bench.run(Duration::from_secs(5));
    bench.store_returns();
    bench.run(Duration::from_secs(60));
    assert_eq!((bench.launched.len(), bench.drains_sent, bench.routed.len()), (3, 0, 3));
}

#[test]
fn a_node_heard_by_one_path_alone_is_polled_urgently_whatever_the_cloud_says() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.mute.insert(node.clone());
    bench.instances.remove(&node);
    bench.run(Duration::from_secs(60));
    assert_eq!(bench.belief(&node), Some(Belief::Alive), "it speaks, so it is there");
    bench.deaf.insert(node.clone(), PollFault::Timeout);
    bench.run(Duration::from_secs(5));
    assert!(!bench.routed.contains(&node));
    assert_eq!(bench.terminated, [node], "a VM that the cloud denies is given back at once");
}
