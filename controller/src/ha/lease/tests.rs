use cic_common::id::ControllerId;

use super::*;

fn at(ms: u64) -> Mono {
    Mono::from_millis(ms)
}

fn held(term: u64, left_ms: u64) -> Lease {
    let holder = Holder { controller: ControllerId::new("other").expect("a label"), api: String::new() };
    Lease { term: Term(term), holder, left: Duration::from_millis(left_ms) }
}

/// Sent and answered at one moment.
fn answered(ms: u64, answer: Answer) -> LeaseEvent {
    LeaseEvent::Answered { sent: at(ms), answer }
}

fn renewed(term: u64) -> Answer {
    Answer::Renewed { term: Term(term), renewed: Renewed::Yes }
}

fn take(term: u64) -> Answer {
    Answer::Took(Taken::Yes(Term(term)))
}

const TAKE: LeaseAction = LeaseAction::Ask(Request::Take);
const RENEW: LeaseAction = LeaseAction::Ask(Request::Renew { term: Term(1) });
const RELEASE: LeaseAction = LeaseAction::Ask(Request::Release { term: Term(1) });
const LEAD: LeaseAction = LeaseAction::Lead { term: Term(1) };
const STEP_DOWN: LeaseAction = LeaseAction::StepDown { term: Term(1) };

/// What it does about each event, and when it wants its next tick.
fn follows(story: &[(u64, LeaseEvent, &[LeaseAction], Option<u64>)]) -> LeaseProtocol {
    let mut protocol = LeaseProtocol::new(LeaseTiming::default(), at(0));
    for (number, (ms, event, expected, deadline)) in story.iter().enumerate() {
        let mut out = Vec::new();
        protocol.step(at(*ms), event.clone(), &mut out);
        assert_eq!(out, *expected, "line {number}: {event:?}");
        assert_eq!(protocol.deadline(), deadline.map(at), "line {number}: {event:?}");
    }
    protocol
}

#[test]
fn a_leader_renews_each_second_and_is_trusted_from_the_sending_on() {
    let protocol = follows(&[
        (0, LeaseEvent::Tick, &[TAKE], None),
        (300, answered(0, take(1)), &[LEAD], Some(1000)),
        (1000, LeaseEvent::Tick, &[RENEW], Some(3500)),
        (1900, answered(1000, renewed(1)), &[], Some(2000)),
    ]);
    let role = protocol.role();
    assert_eq!(role, Role::Leader { term: Term(1), trusted_until: at(4500) });
    assert_eq!((role.may_act(at(4499)), role.may_act(at(4500))), (Some(Term(1)), None));
}

#[test]
fn a_lease_that_is_not_renewed_in_time_is_distrusted_and_then_kept_or_lost() {
    let lost = || Answer::Renewed { term: Term(1), renewed: Renewed::Lost(held(2, 3000)) };
    let silence: [(u64, LeaseEvent, &[LeaseAction], Option<u64>); 6] = [
        (0, LeaseEvent::Tick, &[TAKE], None),
        (0, answered(0, take(1)), &[LEAD], Some(1000)),
        (1000, LeaseEvent::Tick, &[RENEW], Some(3500)),
        (2000, answered(1000, Answer::Nothing), &[], Some(2250)),
        (2250, LeaseEvent::Tick, &[RENEW], Some(3500)),
        (3500, LeaseEvent::Tick, &[], None),
    ];
    let distrusting = follows(&silence);
    assert_eq!(distrusting.role().may_act(at(3500)), None);
    assert!(matches!(distrusting.role(), Role::Leader { term: Term(1), .. }));

    let mut kept = distrusting.clone();
    kept.step(at(3600), answered(3400, renewed(1)), &mut Vec::new());
    assert_eq!(kept.role().may_act(at(6899)), Some(Term(1)));

    let (mut gone, mut out) = (distrusting, Vec::new());
    gone.step(at(3600), answered(2250, lost()), &mut out);
    assert_eq!(out, [STEP_DOWN]);
    assert_eq!(gone.role(), Role::Standby { leader: Some(held(2, 0).holder) });
}

#[test]
fn a_standby_asks_each_quarter_second_or_at_the_expiry_it_was_told() {
    let no = |left_ms| Answer::Took(Taken::No(held(1, left_ms)));
    follows(&[
        (0, LeaseEvent::Tick, &[TAKE], None),
        (10, answered(0, no(3000)), &[], Some(260)),
        (260, LeaseEvent::Tick, &[TAKE], Some(3010)),
        (270, answered(260, no(90)), &[], Some(360)),
        (360, LeaseEvent::Tick, &[TAKE], None),
        (370, answered(360, Answer::Nothing), &[], Some(620)),
    ]);
}

#[test]
fn a_leader_whose_lease_is_over_for_its_holder_is_nobody_to_be_sent_to() {
    let protocol = follows(&[
        (0, LeaseEvent::Tick, &[TAKE], None),
        (10, answered(0, Answer::Took(Taken::No(held(1, 100)))), &[], Some(110)),
        (110, LeaseEvent::Tick, &[TAKE], None),
    ]);
    assert_eq!(protocol.role(), Role::Standby { leader: None });
}

#[test]
fn a_hand_over_releases_after_the_request_under_way_and_stands_back() {
    follows(&[
        (0, LeaseEvent::Tick, &[TAKE], None),
        (0, answered(0, take(1)), &[LEAD], Some(1000)),
        (1000, LeaseEvent::Tick, &[RENEW], Some(3500)),
        // A renewal that came after the release would bring the lease back, for nobody.
        (1005, LeaseEvent::HandOver, &[STEP_DOWN], None),
        (1010, answered(1000, renewed(1)), &[RELEASE], None),
        (1020, answered(1010, Answer::Released { term: Term(1) }), &[], Some(1270)),
        (1270, LeaseEvent::Tick, &[LeaseAction::Ask(Request::Look)], Some(11_005)),
        (1280, answered(1270, Answer::Saw(Some(held(2, 4000)))), &[], Some(2280)),
        (11_005, LeaseEvent::Tick, &[TAKE], None),
    ]);
}

#[test]
fn one_that_stops_releases_and_asks_for_nothing_more() {
    let protocol = follows(&[
        (0, LeaseEvent::Tick, &[TAKE], None),
        (0, answered(0, take(1)), &[LEAD], Some(1000)),
        (500, LeaseEvent::Stop, &[STEP_DOWN, RELEASE], None),
        (510, answered(500, Answer::Released { term: Term(1) }), &[], None),
    ]);
    assert!(protocol.is_done());
}

#[test]
fn a_lease_taken_while_told_to_stop_is_given_back() {
    let protocol = follows(&[
        (0, LeaseEvent::Tick, &[TAKE], None),
        (5, LeaseEvent::Stop, &[], None),
        (10, answered(0, take(1)), &[RELEASE], None),
        (15, answered(10, Answer::Nothing), &[], Some(265)),
        (265, LeaseEvent::Tick, &[RELEASE], None),
    ]);
    assert!(!protocol.is_done());
}

#[test]
fn a_leader_that_the_store_fences_off_steps_down_and_an_older_fence_is_nothing() {
    follows(&[
        (0, LeaseEvent::Tick, &[TAKE], None),
        (0, answered(0, take(1)), &[LEAD], Some(1000)),
        (100, LeaseEvent::Fenced { term: Term(0) }, &[], Some(1000)),
        (200, LeaseEvent::Fenced { term: Term(1) }, &[STEP_DOWN, TAKE], None),
    ]);
}
