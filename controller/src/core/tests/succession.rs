//! Rules about predecessors: every lost node has one heir, until that has read what it left.

use cic_common::assignment::Predecessor;

use super::*;

fn give_notice(bench: &mut Bench, node: &NodeId) {
    bench.change(node, |report| report.notice = Some(notice(NoticeKind::Terminate, "a", 120_000)));
    bench.run(Duration::from_secs(2));
}

/// Whom each node that is there is to read, as the store has it.
fn heirs(bench: &Bench, of: &NodeId) -> Vec<(NodeId, bool)> {
    let has = |row: &NodeRecord| {
        let one = row.predecessors.iter().find(|one| one.node == *of)?;
        bench.fleet.nodes.contains_key(&row.node).then(|| (row.node.clone(), one.is_gone))
    };
    bench.rows.values().filter_map(has).collect()
}

fn lose(bench: &mut Bench, node: &NodeId) {
    bench.silence(node, PollFault::Timeout);
    bench.instances.remove(node);
    bench.beats.remove(node);
    bench.run(Duration::from_secs(120));
    assert!(!bench.fleet.nodes.contains_key(node), "{node} is still there");
}

fn read_to_the_last(bench: &mut Bench, heir: &NodeId, from: &NodeId) {
    let event = NodeEvent::Restored {
        from: from.clone(),
        age_ms: 1,
        took_ms: 1,
        unfinished_count: 0,
        rerun_count: 0,
        differs: Vec::new(),
        skipped: Vec::new(),
        is_last: true,
    };
    bench.give(Event::Told { node: heir.clone(), incarnation: Incarnation(1), event });
}

#[test]
fn the_node_launched_in_anothers_place_reads_what_that_left_and_hears_that_it_is_gone() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    give_notice(&mut bench, &node);
    let fresh = bench.node(2);
    assert_eq!(heirs(&bench, &node), [(fresh.clone(), false)]);
    bench.serve(&fresh, 1);
    lose(&mut bench, &node);
    assert_eq!(heirs(&bench, &node), [(fresh.clone(), true)]);
    assert!(bench.assigned.iter().filter(|told| **told == fresh).count() >= 2, "it is told");
    read_to_the_last(&mut bench, &fresh, &node);
    assert_eq!(heirs(&bench, &node), []);
}

#[test]
fn what_was_read_to_the_last_is_read_by_nobody_else_unless_the_node_served_again() {
    for serves_again in [false, true] {
        let mut bench = Bench::serving(2);
        let node = bench.node(0);
        give_notice(&mut bench, &node);
        let fresh = bench.node(2);
        bench.serve(&fresh, 1);
        bench.change(&node, |report| report.phase = Phase::Draining);
        bench.run(Duration::from_secs(2));
        read_to_the_last(&mut bench, &fresh, &node);
        if serves_again {
            bench.change(&node, |report| report.phase = Phase::Serving);
            bench.run(Duration::from_secs(2));
        }
        lose(&mut bench, &node);
        assert_eq!(heirs(&bench, &node).len(), usize::from(serves_again));
    }
}

#[test]
fn a_node_that_stays_after_all_has_no_heir() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    let seen = notice(NoticeKind::Terminate, "a", 120_000);
    let (source, id) = (seen.source.clone(), seen.id.clone());
    give_notice(&mut bench, &node);
    let fresh = bench.node(2);
    bench.serve(&fresh, 1);
    assert_eq!(heirs(&bench, &node).len(), 1);
    bench.change(&node, |report| report.notice = None);
    let event = NodeEvent::NoticeLifted { source, id };
    bench.give(Event::Told { node: node.clone(), incarnation: Incarnation(1), event });
    bench.run(Duration::from_secs(30));
    assert_eq!(heirs(&bench, &node), []);
    assert!(!bench.terminated.contains(&node));
}

#[test]
fn what_an_heir_without_a_store_cannot_read_goes_to_one_with_a_store() {
    let mut bench = Bench::serving(2);
    let (node, other) = (bench.node(0), bench.node(1));
    give_notice(&mut bench, &node);
    let fresh = bench.node(2);
    bench.keeps_checkpoints = false;
    bench.serve(&fresh, 1);
    assert_eq!(heirs(&bench, &node), [(other, false)]);
}

#[test]
fn what_waits_for_an_heir_is_given_to_a_spare_when_it_connects() {
    let mut bench = Bench::serving(1);
    let node = bench.node(0);
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Rebalance, "r", 0)));
    bench.run(Duration::from_secs(2));
    let spare = bench.node(1);
    lose(&mut bench, &node);
    assert_eq!(heirs(&bench, &node), []);
    bench.serve(&spare, 1);
    assert_eq!(heirs(&bench, &node), [(spare, true)]);
}

#[test]
fn of_two_nodes_that_are_taken_at_once_each_has_an_heir_of_its_own() {
    let mut bench = Bench::serving(3);
    let (first, second) = (bench.node(0), bench.node(1));
    give_notice(&mut bench, &first);
    let third = bench.node(3);
    bench.serve(&third, 1);
    give_notice(&mut bench, &second);
    assert_eq!(heirs(&bench, &first), [(bench.node(3), false)]);
    assert_eq!(heirs(&bench, &second), [(bench.node(4), false)]);
}

#[test]
fn what_an_heir_has_not_read_when_it_is_lost_is_its_own_heirs_to_read() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    give_notice(&mut bench, &node);
    let fresh = bench.node(2);
    bench.serve(&fresh, 1);
    lose(&mut bench, &node);
    bench.run(Duration::from_secs(5));
    lose(&mut bench, &fresh);
    for left in [&node, &fresh] {
        let [(heir, is_gone)] = &heirs(&bench, left)[..] else { panic!("{left}: {:?}", heirs(&bench, left)) };
        assert!(*is_gone && *heir != fresh, "{left}: {heir}");
    }
}

#[test]
fn where_a_spare_serves_already_a_staying_node_reads_what_was_left() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.change(&node, |report| report.notice = Some(notice(NoticeKind::Rebalance, "r", 0)));
    bench.run(Duration::from_secs(2));
    let spare = bench.node(2);
    bench.serve(&spare, 1);
    assert_eq!(heirs(&bench, &node), [], "advice may come to nothing");
    lose(&mut bench, &node);
    assert_eq!(bench.launched.len(), 3, "the spare takes its place");
    let [(heir, true)] = &heirs(&bench, &node)[..] else { panic!("{:?}", heirs(&bench, &node)) };
    assert_ne!(*heir, node);
}

#[test]
fn what_nobody_is_there_to_read_waits_for_the_next_launch() {
    let mut bench = Bench::serving(1);
    let node = bench.node(0);
    lose(&mut bench, &node);
    bench.run(Duration::from_secs(30));
    let [(heir, _)] = &heirs(&bench, &node)[..] else { panic!("{:?}", heirs(&bench, &node)) };
    assert_ne!(*heir, node);
}

#[test]
fn a_controller_that_comes_after_still_knows_the_heirs() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    give_notice(&mut bench, &node);
    let fresh = bench.node(2);
    let mut next = Bench::with(2, bench.stored(2));
    next.serve(&fresh, 1);
    let row = next.fleet.nodes.get(&fresh).map(|node| node.record.predecessors.clone());
    assert_eq!(row, Some(vec![Predecessor { node, is_gone: false }]));
}
