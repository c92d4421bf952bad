//! What the paths bring is compared, and raises alarms only.

use std::time::Duration;

use cic_common::id::Incarnation;
use cic_common::report::{Heartbeat, NodeReport, Phase};

use super::bench::*;
use crate::core::*;

/// A serving node's word with this many starts of its engine behind it.
fn word(bench: &Bench, seq: u64, version: u64, restart_count: u32) -> Heartbeat {
    let mut report = NodeReport { phase: Phase::Serving, ..NodeReport::booting() };
    report.engine.restart_count = restart_count;
    let (node, report) = (bench.node(0), report.sealed(version));
    Heartbeat { node, incarnation: Incarnation(1), seq, challenge: 0, report }
}

fn push(bench: &mut Bench, word: Heartbeat) {
    bench.give(Event::Heartbeats(vec![word]));
}

fn answer(bench: &mut Bench, word: Heartbeat) {
    bench.give(Event::Polled(Polled {
        node: bench.node(0),
        urgent: false,
        trip: Duration::ZERO,
        result: Ok(word),
    }));
}

fn alarms(bench: &Bench) -> Vec<&str> {
    let alerts = bench.notes.iter().filter(|note| note.severity == Severity::Alert);
    alerts.map(|note| note.kind.as_str()).collect()
}

#[test]
fn two_paths_that_bring_different_states_of_one_version_are_one_alarm() {
    let mut bench = Bench::serving(1);
    for (seq, version, by_push, by_poll) in [(1000, 4, 0, 0), (1010, 5, 1, 1)] {
        let (pushed, polled) = (word(&bench, seq, version, by_push), word(&bench, seq + 1, version, by_poll));
        push(&mut bench, pushed);
        answer(&mut bench, polled);
    }
    let early = word(&bench, 1020, 4, 0);
    answer(&mut bench, early);
    assert!(alarms(&bench).is_empty(), "{:?}", alarms(&bench));
    for seq in [1030, 1040] {
        let (pushed, polled) = (word(&bench, seq, 6, 1), word(&bench, seq + 1, 6, 2));
        push(&mut bench, pushed);
        answer(&mut bench, polled);
    }
    assert_eq!(alarms(&bench), ["paths-disagree"]);
}

#[test]
fn a_report_that_is_not_what_its_digest_says_is_an_alarm_and_changes_no_verdict() {
    let mut bench = Bench::serving(1);
    let before = bench.fleet.view(bench.now).routes;
    for seq in [1000, 1010] {
        let mut wrong = word(&bench, seq, 0, 0);
        wrong.report.state.digest ^= 1;
        push(&mut bench, wrong.clone());
        answer(&mut bench, Heartbeat { seq: seq + 1, ..wrong });
    }
    assert_eq!(alarms(&bench), ["digest-mismatch"; 2], "one a path");
    assert_eq!(bench.fleet.view(bench.now).routes, before);
    let mut stale = word(&bench, 1020, 0, 0);
    (stale.incarnation, stale.report.state.digest) = (Incarnation(0), 7);
    push(&mut bench, stale);
    assert_eq!(alarms(&bench).len(), 2, "an overtaken incarnation is not heard");
}

#[test]
fn a_hello_is_compared_with_its_digest_too() {
    let mut bench = Bench::serving(1);
    let hello = |incarnation, digest| {
        let mut report = NodeReport::booting();
        report.state.digest ^= digest;
        cic_common::wire::message::Hello {
            node: bench.node(0),
            incarnation: Incarnation(incarnation),
            role: cic_common::report::Role::Replica,
            address: "127.0.0.1:1".to_owned(),
            version: "test".to_owned(),
            keeps_checkpoints: false,
            routes: None,
            report,
        }
    };
    let (good, bad) = (hello(2, 0), hello(3, 1));
    bench.give(Event::Connected(good));
    assert!(alarms(&bench).is_empty());
    bench.give(Event::Connected(bad));
    assert_eq!(alarms(&bench), ["digest-mismatch"]);
}
