//! VMs without a row: told, held, adopted or given back, and never another fleet's.

use cic_common::id::FleetName;

use super::*;

fn stray(n: u32) -> NodeId {
    NodeId::new(format!("cic-local-here-none-dev-20261101-001-node{n:03}")).expect("label")
}

/// One of the cluster of the bench's deployment.
fn sibling(n: u32) -> NodeId {
    NodeId::new(format!("cic-local-here-none-dev-20261124-001-node{n:03}")).expect("label")
}

fn alerts(bench: &Bench, kind: &str) -> usize {
    bench.notes.iter().filter(|note| note.severity == Severity::Alert && note.kind == kind).count()
}

fn asked(node: &NodeId, wish: OrphanWish) -> Event {
    Event::OrphanAsked { node: node.clone(), wish, reason: "test".to_owned() }
}

#[test]
fn one_is_told_when_it_can_be_no_shadow_and_given_back_after_the_grace() {
    let mut bench = Bench::serving(1);
    bench.instances.insert(stray(1), InstanceState::Running);
    bench.run(Duration::from_secs(55));
    assert_eq!((alerts(&bench, "orphan"), bench.fleet.view(bench.now).orphans.len()), (0, 0));
    bench.run(Duration::from_secs(70));
    let view = bench.fleet.view(bench.now);
    assert_eq!((alerts(&bench, "orphan"), view.orphans.len()), (1, 1));
    let due = view.orphans[0].terminate_at.expect("not held");
    assert_eq!(due.since(view.orphans[0].since), Timing::default().orphan_grace);
    bench.run(due.since(bench.now) - Duration::from_secs(1));
    assert!(bench.terminated.is_empty());
    bench.run(Timing::default().list_interval + Duration::from_secs(2));
    assert_eq!(bench.terminated, [stray(1)]);
    bench.run(Duration::from_secs(60));
    assert!(bench.fleet.view(bench.now).orphans.is_empty());
}

#[test]
fn one_that_goes_by_itself_was_a_shadow_and_is_never_told() {
    let mut bench = Bench::serving(1);
    bench.instances.insert(stray(1), InstanceState::Running);
    bench.run(Duration::from_secs(40));
    bench.instances.remove(&stray(1));
    bench.run(Duration::from_secs(400));
    assert_eq!((alerts(&bench, "orphan"), bench.terminated.len()), (0, 0));
}

#[test]
fn another_fleets_vms_are_counted_and_never_touched_even_under_a_name_of_ours() {
    let mut bench = Bench::serving(2);
    let other = FleetName::new("other").expect("label");
    for n in 1..=5 {
        bench.instances.insert(stray(n), InstanceState::Running);
        bench.foreign.insert(stray(n), other.clone());
    }
    bench.run(Duration::from_secs(70));
    let ours = bench.node(0);
    bench.silence(&ours, PollFault::Timeout);
    bench.foreign.insert(ours.clone(), other);
    bench.run(Duration::from_secs(20));
    assert_eq!(bench.terminated, [ours], "a VM of theirs under its name does not speak for ours");
    bench.run(Duration::from_secs(900));
    let view = bench.fleet.view(bench.now);
    assert!(view.orphans.is_empty() && view.foreign_count == 5, "{:?}", view.orphans);
    assert!((1..=5).all(|n| bench.instances.contains_key(&stray(n))));
}

#[test]
fn many_beside_few_rows_are_held_over_a_restart_until_an_operator_says_what() {
    let lost = || {
        let mut bench = Bench::serving(2);
        bench.instances.extend((1..=3).map(|n| (stray(n), InstanceState::Running)));
        bench.run(Duration::from_secs(100));
        assert_eq!(alerts(&bench, "orphans-held"), 1);
        bench.run(Duration::from_secs(3600));
        let view = bench.fleet.view(bench.now);
        assert!(bench.terminated.is_empty() && view.orphans.iter().all(|it| it.terminate_at.is_none()));
        assert!(view.holds.iter().any(|hold| hold.contains("cic orphans")), "{:?}", view.holds);
        bench
    };
    let mut bench = lost();
    bench.give(asked(&stray(2), OrphanWish::Terminate));
    bench.run(Duration::from_secs(120));
    assert_eq!(bench.terminated, [stray(2)]);
    let name = deployment(2).name;
    bench.refusals = (0..40).map(|_| CloudFault::NoCapacity("none".to_owned())).collect();
    bench.give(Event::Deployed(deployment(4)));
    bench.give(asked(&stray(1), OrphanWish::Adopt { deployment: name.clone() }));
    bench.give(asked(&stray(3), OrphanWish::Adopt { deployment: name }));
    let view = bench.fleet.view(bench.now);
    assert!(view.orphans.is_empty() && view.holds.is_empty(), "{:?}", view.holds);
    assert!([1, 3].iter().all(|n| view.nodes.iter().any(|node| node.node == stray(*n))));

    let first = lost();
    let mut next = Bench::with(2, first.stored(2));
    next.instances = first.instances.clone();
    first.launched.iter().for_each(|node| next.serve(node, 1));
    next.run(Duration::from_secs(900));
    assert!(next.terminated.is_empty());
}

#[test]
fn a_few_beside_many_rows_are_given_back_one_at_a_time() {
    let mut bench = Bench::serving(9);
    bench.instances.extend((1..=3).map(|n| (stray(n), InstanceState::Running)));
    bench.run(Duration::from_secs(310));
    assert!(bench.terminated.len() <= 1, "{:?}", bench.terminated);
    bench.run(Duration::from_secs(120));
    assert_eq!(bench.terminated.len(), 3);
}

#[test]
fn one_that_speaks_is_adopted_where_a_node_of_its_deployment_is_missing() {
    let mut bench = Bench::serving(1);
    bench.instances.insert(sibling(7), InstanceState::Running);
    bench.serve(&sibling(7), 1);
    bench.refusals = (0..40).map(|_| CloudFault::NoCapacity("none".to_owned())).collect();
    bench.give(Event::Deployed(deployment(2)));
    bench.run(Duration::from_secs(130));
    assert_eq!(bench.routed.len(), 2);
    assert!(bench.assigned.contains(&sibling(7)) && bench.terminated.iter().all(|it| *it != sibling(7)));
    assert!(bench.rows.contains_key(&sibling(7)));
}

#[test]
fn one_that_speaks_and_is_not_needed_is_drained_before_it_is_given_back() {
    let mut bench = Bench::serving(1);
    bench.instances.insert(sibling(7), InstanceState::Running);
    bench.serve(&sibling(7), 1);
    bench.run(Duration::from_secs(200));
    assert_eq!((bench.routed.len(), bench.drains_sent), (1, 0));
    assert!(!bench.assigned.contains(&sibling(7)), "it is told nothing to run");
    bench.run(Duration::from_secs(160));
    assert_eq!((bench.drains_sent, &bench.terminated[..]), (1, &[sibling(7)][..]));
}

#[test]
fn a_name_that_some_vm_has_is_not_given_to_another() {
    let mut bench = Bench::new(0);
    bench.instances.insert(sibling(1), InstanceState::Running);
    bench.run(Duration::from_secs(40));
    bench.give(Event::Deployed(deployment(1)));
    bench.run(Duration::from_secs(5));
    assert_eq!(bench.launched, [sibling(2)]);
}
