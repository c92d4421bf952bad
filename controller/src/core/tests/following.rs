//! A standby: what it knows, what it leaves alone, and how it leads.

use cic_common::id::{OperationId, Term};

use super::*;

/// A fleet of two serving nodes, and a standby of it that heard them connect.
fn standby() -> Bench {
    let mut bench = Bench::serving(2);
    let rows = bench.stored(1);
    bench.fleet = Fleet::new(Timing::default(), BrakeRules::default());
    bench.give(Event::Followed(rows));
    for node in [bench.node(0), bench.node(1)] {
        bench.serve(&node, 1);
    }
    bench.routed.clear();
    bench.assigned.clear();
    bench.notes.clear();
    bench
}

fn runs(fleet: &mut Fleet, now: Mono, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    fleet.step(now, event, &mut out);
    out
}

fn hello(node: &NodeId) -> Event {
    Event::Connected(cic_common::wire::message::Hello {
        node: node.clone(),
        incarnation: Incarnation(1),
        role: cic_common::report::Role::Replica,
        address: "127.0.0.1:1".to_owned(),
        version: "test".to_owned(),
        keeps_checkpoints: false,
        routes: None,
        report: NodeReport::booting().sealed(0),
    })
}

#[test]
fn a_standby_believes_what_it_sees_and_does_nothing_about_it() {
    let mut bench = standby();
    let (lost, launched) = (bench.node(0), bench.launched.len());
    bench.silence(&lost, PollFault::Timeout);
    bench.run(Duration::from_secs(200));
    assert_eq!(bench.belief(&lost), Some(Belief::Silent));
    assert_eq!(bench.belief(&bench.node(1)), Some(Belief::Alive));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (launched, 0));
    assert!(bench.notes.is_empty() && bench.routed.is_empty() && bench.assigned.is_empty());
    assert_eq!(bench.fleet.view(bench.now).operations, []);
}

#[test]
fn a_standby_that_leads_needs_no_settling_for_nodes_it_has_heard() {
    let mut bench = standby();
    bench.run(Duration::from_secs(30));
    bench.give(Event::Restored(bench.stored(2)));
    assert!(bench.fleet.view(bench.now).is_settled);
    assert_eq!(bench.routed.len(), 2);
    assert_eq!(bench.assigned.len(), 2, "each is told the new term");
    bench.run(Duration::from_secs(60));
    assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
}

#[test]
fn a_node_that_the_standby_saw_lost_is_replaced_as_soon_as_it_leads() {
    let mut bench = standby();
    let lost = bench.node(0);
    bench.silence(&lost, PollFault::Timeout);
    bench.run(Duration::from_secs(90));
    bench.give(Event::Restored(bench.stored(2)));
    bench.run(Duration::from_secs(1));
    assert_eq!(bench.launched.len(), 3);
}

#[test]
fn a_node_that_connects_before_its_row_is_taken_in_with_it() {
    let bench = Bench::serving(1);
    let (rows, node) = (bench.stored(1), bench.node(0));
    let mut fleet = Fleet::new(Timing::default(), BrakeRules::default());
    let empty = Restored { nodes: Vec::new(), ..rows.clone() };
    runs(&mut fleet, Mono::ZERO, Event::Followed(empty));
    let out = runs(&mut fleet, Mono::ZERO, hello(&node));
    let welcome = |action: &Action| match action {
        Action::Send { message: Message::Welcome { term, assignment, predecessors }, .. } => {
            Some((*term, assignment.is_none() && predecessors.is_empty()))
        }
        _ => None,
    };
    assert_eq!(out.iter().find_map(welcome), Some((rows.term, true)), "{out:?}");
    assert!(fleet.view(Mono::ZERO).nodes.is_empty());
    runs(&mut fleet, Mono::from_millis(900), Event::Followed(rows));
    let view = fleet.view(Mono::from_millis(900));
    assert_eq!(view.nodes.iter().map(|node| node.push).collect::<Vec<_>>(), [Freshness::Fresh]);
}

#[test]
fn a_leader_that_steps_down_forgets_what_was_not_stored_and_goes_on_with_what_was() {
    let mut bench = Bench::serving(1);
    let rows = bench.stored(1);
    bench.store_is_away = true;
    bench.give(Event::Deployed(deployment(2)));
    assert_eq!(bench.fleet.view(bench.now).nodes.len(), 2, "a launch is decided and not recorded");
    let out = runs(&mut bench.fleet, bench.now, Event::SteppedDown);
    assert!(out.iter().all(Action::is_of_a_standby), "{out:?}");
    bench.give(Event::Followed(rows.clone()));
    assert_eq!(bench.fleet.view(bench.now).nodes.len(), 1);
    // What was recorded by another meanwhile is finished under its own id.
    let node = bench.node(0);
    let operation = Operation {
        id: OperationId(7),
        term: Term(2),
        node: node.clone(),
        kind: OperationKind::Launch { deployment: deployment(1).name, replaces: None },
        state: OperationState::Recorded,
        reason: "test".to_owned(),
        deadline_ms: 600_000,
        price_limit_usd_per_hour: None,
    };
    let rows = Restored { term: Term(3), operations: vec![operation], ..rows };
    let out = runs(&mut bench.fleet, bench.now, Event::Followed(rows.clone()));
    assert!(!out.iter().any(|action| matches!(action, Action::Launch { .. })), "{out:?}");
    assert_eq!(bench.fleet.view(bench.now).operations.len(), 1);
    let out = runs(&mut bench.fleet, bench.now, Event::Restored(rows));
    let launches =
        out.iter().filter(|action| matches!(action, Action::Launch { operation: OperationId(7), .. }));
    assert_eq!(launches.count(), 1, "{out:?}");
}

#[test]
fn a_standby_wants_ticks_only_for_what_it_does() {
    let mut bench = standby();
    bench.give(Event::SteppedDown);
    for _ in 0..1000 {
        let Some(due) = bench.fleet.deadline() else { return };
        bench.now = bench.now.max(due);
        bench.give(Event::Tick);
    }
    assert!(bench.now.as_millis() > 60_000, "a thousand ticks took {:?}", bench.now);
}
