//! Rules about notices: what is told, when the node drains for them, and what becomes of it when they are lifted.

use cic_common::notice::{BlindSource, Cloud};

use super::*;

#[test]
fn a_notice_is_told_first_and_drains_before_its_deadline_less_the_reserve() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    let notice = |left| notice(NoticeKind::Terminate, "a", left);
    let actions = bench.give(notice(Mono::from_millis(120_000))).to_vec();
    assert!(matches!(actions.first(), Some(Action::Tell(NodeEvent::NoticeSeen { .. }))));
    assert_eq!(bench.phase(), Phase::Draining);
    let again = bench.give(notice(Mono::from_millis(121_000))).to_vec();
    assert!(again.is_empty(), "the same notice with a drifting time is one notice: {again:?}");
    assert!(
        !bench.pass(Duration::from_millis(109_900)).iter().any(|a| matches!(a, Action::StopEngine { .. }))
    );
    assert!(bench.pass(Duration::from_millis(100)).iter().any(|a| matches!(a, Action::StopEngine { .. })));
}

pub(super) fn notice(kind: NoticeKind, id: &str, deadline: Mono) -> Event {
    let (source, id) = ("file".to_owned(), id.to_owned());
    Event::NoticeSeen { kind, source, id, deadline, confidence: Confidence::Announced, resources: Vec::new() }
}

/// A serving node that got a notice, and how far it then went.
pub(super) fn noticed(how_far: Phase) -> Bench {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    bench.give(notice(NoticeKind::Stop, "a", Mono::from_millis(120_000)));
    if how_far == Phase::Draining {
        return bench;
    }
    bench.give(Event::EdgeCounted(EdgeReport::default()));
    if how_far == Phase::Stopped {
        bench.end();
    }
    bench
}

fn lifted() -> Event {
    Event::NoticeLifted { source: "file".to_owned(), id: "a".to_owned() }
}

pub(super) fn drained_by_command() -> Event {
    let command = Command::Drain { within_ms: 60_000, reason: "maintenance".to_owned() };
    Event::Commanded { operation: OperationId(4), term: Term(1), command }
}

#[test]
fn a_lifted_notice_lets_the_node_serve_again_however_far_it_went() {
    let mut draining = noticed(Phase::Draining);
    draining.give(lifted());
    draining.give(probed(7, Ok(())));
    assert_eq!(draining.phase(), Phase::Serving);

    // Its engine is being stopped.
    let mut stopping = noticed(Phase::Loading);
    stopping.give(lifted());
    stopping.end();
    assert_eq!(stopping.phase(), Phase::Mounting);

    let mut stopped = noticed(Phase::Stopped);
    assert_eq!(stopped.phase(), Phase::Stopped);
    stopped.give(lifted());
    assert_eq!(stopped.phase(), Phase::Mounting);
}

#[test]
fn a_lifted_notice_does_not_undo_an_operators_drain() {
    for how_far in [Phase::Draining, Phase::Loading, Phase::Stopped] {
        let mut bench = noticed(how_far);
        bench.give(drained_by_command());
        bench.give(lifted());
        bench.give(Event::EdgeCounted(EdgeReport::default()));
        bench.end();
        assert_eq!(bench.phase(), Phase::Stopped, "{how_far:?}");
    }
}

#[test]
fn a_node_without_assignment_takes_one_after_a_lifted_notice() {
    let mut bench = Bench::new(Role::Replica);
    bench.give(Event::Booted(Booted::default()));
    bench.give(notice(NoticeKind::Stop, "a", Mono::from_millis(120_000)));
    bench.give(Event::EdgeCounted(EdgeReport::default()));
    assert_eq!(bench.phase(), Phase::Stopped);
    bench.give(lifted());
    bench.give(Event::Assigned { term: Term(1), assignment: assignment("m") });
    assert_eq!(bench.phase(), Phase::Mounting);
}

#[test]
fn advice_of_a_rebalance_drains_nothing() {
    let mut bench = Bench::serving();
    bench.give(notice(NoticeKind::Rebalance, "r", Mono::from_millis(120_000)));
    assert_eq!(bench.phase(), Phase::Serving);
    assert!(bench.agent.report(bench.now).notice.is_some());
}

#[test]
fn a_notice_of_days_leaves_the_node_serving_until_two_minutes_before_its_deadline() {
    let mut bench = Bench::serving();
    let deadline = Mono::from_millis(3 * 24 * 3_600_000);
    bench.give(notice(NoticeKind::Reboot, "a", deadline));
    let drain_at = deadline - Duration::from_secs(120);
    bench.now = drain_at - Duration::from_millis(1);
    bench.give(probed(7, Ok(())));
    assert_eq!(bench.phase(), Phase::Serving);
    assert!(bench.agent.deadline().is_some_and(|at| at <= drain_at), "it wants a tick then");
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.phase(), Phase::Draining);
}

#[test]
fn of_two_notices_the_sooner_ends_the_drain_and_the_other_once_that_is_lifted() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    bench.give(notice(NoticeKind::Terminate, "late", Mono::from_millis(100_000)));
    bench.give(notice(NoticeKind::Terminate, "soon", Mono::from_millis(30_000)));
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.phase(), Phase::Draining);
    bench.give(Event::NoticeLifted { source: "file".to_owned(), id: "soon".to_owned() });
    for (second, is_over) in [(25, false), (89, false), (90, true)] {
        bench.now = Mono::from_millis(second * 1000);
        assert_eq!(stops(bench.give(Event::Tick)), is_over, "{second} s");
    }
}

#[test]
fn hibernation_hands_over_and_stops_at_once() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    let actions = bench.give(notice(NoticeKind::Hibernate, "a", Mono::ZERO)).to_vec();
    assert!(actions.contains(&Action::HandOver) && stops(&actions), "{actions:?}");
}

#[test]
fn a_deadline_that_has_passed_is_acted_on_at_once() {
    let mut bench = Bench::serving();
    bench.now = Mono::from_millis(60_000);
    let actions = bench.give(notice(NoticeKind::Terminate, "a", Mono::from_millis(1_000))).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::NoticeSeen { .. }))));
    assert!(stops(&actions), "{actions:?}");
}

#[test]
fn a_notice_while_loading_stops_the_engine_that_would_serve_nobody() {
    let mut bench = Bench::loading();
    bench.give(notice(NoticeKind::Terminate, "a", Mono::from_millis(120_000)));
    let actions = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
    assert!(stops(&actions), "{actions:?}");
    bench.end();
    assert_eq!(bench.phase(), Phase::Stopped);
}

#[test]
fn a_drained_node_says_that_its_end_may_come() {
    let mut bench = noticed(Phase::Loading);
    let actions = bench.give(exited(7, "signal 15", &[])).to_vec();
    let said = Action::AcknowledgeNotice { source: "file".to_owned(), id: "a".to_owned() };
    assert!(actions.contains(&said), "{actions:?}");
    let farewell = |action: &Action| matches!(action, Action::Tell(NodeEvent::Farewell { .. }));
    let places = [farewell, |action: &Action| matches!(action, Action::AcknowledgeNotice { .. })]
        .map(|wanted| actions.iter().position(wanted));
    assert!(places[0] < places[1], "the farewell goes first: {actions:?}");
}

#[test]
fn a_container_given_sigterm_is_done_a_second_before_sigkill() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    let actions = bench.give(notice(NoticeKind::Terminate, "a", Mono::from_millis(5_000))).to_vec();
    assert!(matches!(actions.first(), Some(Action::Tell(NodeEvent::NoticeSeen { .. }))), "{actions:?}");
    bench.give(Event::StopAsked { with_engine: true, reason: "SIGTERM".to_owned() });
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    bench.now = Mono::from_millis(3_500);
    let actions = bench.give(Event::Tick).to_vec();
    assert!(actions.contains(&Action::HandOver));
    assert!(actions.iter().any(|a| matches!(a, Action::StopEngine { grace_ms: 500, .. })), "{actions:?}");
    bench.now = Mono::from_millis(4_000);
    let actions = bench.give(exited(7, "signal 9", &[])).to_vec();
    assert!(actions.iter().any(|a| matches!(a, Action::Tell(NodeEvent::Farewell { .. }))), "{actions:?}");
    assert!(actions.iter().any(|a| matches!(a, Action::Exit { code: 0, .. })), "{actions:?}");
}

#[test]
fn a_blind_source_is_reported_until_it_sees_again() {
    let mut bench = Bench::serving();
    let (spot, file) = ("aws-spot".to_owned(), "file".to_owned());
    // The file is read before it is known whose machine this is.
    bench.give(Event::SpotSeen { source: file.clone() });
    bench.give(Event::CloudFound { cloud: Cloud::Aws, sources: vec![spot.clone(), file.clone()] });
    let report = bench.agent.report(bench.now).spot;
    assert!(report.knows(&file) && !report.knows(&spot), "{report:?}");
    bench.now = Mono::from_millis(9_000);
    let (source, cause) = ("aws-spot".to_owned(), "status 503".to_owned());
    let since = Mono::from_millis(6_000);
    let actions =
        bench.give(Event::SpotBlind { source: source.clone(), since, cause: cause.clone() }).to_vec();
    assert!(
        actions
            .contains(&Action::Tell(NodeEvent::SpotBlind { source: source.clone(), cause: cause.clone() }))
    );
    let report = bench.agent.report(bench.now).spot;
    assert_eq!(report.cloud, Some(Cloud::Aws));
    assert_eq!(report.blind, [BlindSource { source: source.clone(), for_ms: 3_000, cause }]);
    assert!(!bench.agent.report(bench.now).spot.knows(&source));
    bench.give(Event::SpotSeen { source: source.clone() });
    let report = bench.agent.report(bench.now).spot;
    assert!(report.blind.is_empty() && report.knows(&source));
    assert_eq!(bench.phase(), Phase::Serving);
}

#[test]
fn a_maintenance_that_is_put_off_lets_the_node_serve_again() {
    let mut bench = Bench::serving();
    bench.give(Event::EdgeCounted(EdgeReport { in_flight: 1, ..EdgeReport::default() }));
    bench.give(notice(NoticeKind::Reboot, "a", Mono::from_millis(100_000)));
    assert_eq!(bench.phase(), Phase::Draining);
    bench.give(notice(NoticeKind::Reboot, "a", Mono::from_millis(7_200_000)));
    bench.give(probed(7, Ok(())));
    assert_eq!(bench.phase(), Phase::Serving);
}

#[test]
fn only_what_the_node_leaves_for_is_acknowledged() {
    for (what, drains, said) in [
        ("an operator's drain", drained_by_command(), false),
        ("the notice that is due", notice(NoticeKind::Terminate, "due", Mono::from_millis(60_000)), true),
    ] {
        let mut bench = Bench::serving();
        bench.give(notice(NoticeKind::Reboot, "next week", Mono::from_millis(600_000_000)));
        bench.give(drains);
        let mut all = bench.give(Event::EdgeCounted(EdgeReport::default())).to_vec();
        all.extend_from_slice(bench.give(exited(7, "signal 15", &[])));
        let ids: Vec<&str> = all
            .iter()
            .filter_map(|action| match action {
                Action::AcknowledgeNotice { id, .. } => Some(id.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(ids, if said { vec!["due"] } else { Vec::new() }, "{what}");
    }
}

#[test]
fn a_restart_of_the_agent_days_before_a_maintenance_says_no_farewell() {
    let mut bench = Bench::serving();
    bench.give(notice(NoticeKind::Reboot, "a", Mono::from_millis(600_000_000)));
    let mut all = bench.give(Event::StopAsked { with_engine: false, reason: "upgrade".to_owned() }).to_vec();
    all.extend_from_slice(bench.give(Event::EdgeCounted(EdgeReport::default())));
    assert!(all.iter().any(|a| matches!(a, Action::Exit { code: 0, .. })));
    assert!(!all.iter().any(|a| matches!(a, Action::Tell(NodeEvent::Farewell { .. }))), "{all:?}");
}
