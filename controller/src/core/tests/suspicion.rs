//! What a push path's silence sets off before it is believed.

use std::time::Duration;

use cic_common::time::Mono;

use super::bench::*;
use crate::core::*;

/// Steps the fleet alone, so that its questions can be answered late or never.
struct Quiet {
    bench: Bench,
    polls: Vec<(Mono, Duration)>,
    prods: Vec<Mono>,
}

impl Quiet {
    /// Two serving nodes, of which the first has just beaten for the last time.
    fn begin() -> Self {
        let mut bench = Bench::serving(2);
        let dead = bench.node(0);
        let beat = bench.beat(&dead, 0);
        bench.give(Event::Heartbeats(beat.into_iter().collect()));
        bench.mute.insert(dead);
        Self { bench, polls: Vec::new(), prods: Vec::new() }
    }

    /// Lets `span` pass with one node silent and no poll answered; the other node goes on.
    fn run(&mut self, span: Duration) {
        let end = self.bench.now + span;
        let dead = self.bench.node(0);
        while self.bench.now < end {
            self.bench.now = self.bench.fleet.deadline().unwrap_or(end).clamp(self.bench.now, end);
            let mut out = Vec::new();
            let other = self.bench.node(1);
            let beat = self.bench.beat(&other, 0);
            self.bench.fleet.step(self.bench.now, Event::Heartbeats(beat.into_iter().collect()), &mut out);
            self.bench.fleet.step(self.bench.now, Event::Tick, &mut out);
            for action in out {
                match action {
                    Action::Poll { node, urgent: true, within, .. } if node == dead => {
                        self.polls.push((self.bench.now, within));
                    }
                    Action::Send { node, message: Message::Challenge { .. } } if node == dead => {
                        self.prods.push(self.bench.now);
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn two_missed_heartbeats_fire_a_poll_and_prods_and_route_nobody_out() {
    let mut quiet = Quiet::begin();
    let silent_at = quiet.bench.now;
    quiet.run(Duration::from_millis(2100));
    assert!(quiet.polls.is_empty());
    quiet.run(Duration::from_millis(1200));
    let [(at, within)] = quiet.polls[..] else { panic!("{:?}", quiet.polls) };
    assert_eq!((at.since(silent_at).as_millis(), within.as_millis()), (2151, 700));
    assert_eq!(quiet.prods.len(), 3, "{:?}", quiet.prods);
    let dead = quiet.bench.node(0);
    assert_eq!(quiet.bench.belief(&dead), Some(Belief::SuspectPush));
    assert!(quiet.bench.routed.contains(&dead));
}

#[test]
fn prods_are_bounded_and_end_with_the_silence() {
    let mut quiet = Quiet::begin();
    quiet.run(Duration::from_secs(30));
    assert_eq!(quiet.prods.len(), 8);
    let dead = quiet.bench.node(0);
    let beat = quiet.bench.beat(&dead, 0);
    quiet.bench.give(Event::Heartbeats(beat.into_iter().collect()));
    assert_eq!(quiet.bench.belief(&dead), Some(Belief::Alive));
    quiet.run(Duration::from_millis(2500));
    assert_eq!(quiet.prods.len(), 9, "a new silence begins anew");
}

#[test]
fn a_node_that_answers_neither_is_silent_three_seconds_after_its_last_heartbeat() {
    let mut bench = Bench::serving(2);
    let dead = bench.node(0);
    let beat = bench.beat(&dead, 0);
    bench.give(Event::Heartbeats(beat.into_iter().collect()));
    bench.silence(&dead, PollFault::Timeout);
    bench.run(Duration::from_millis(2100));
    assert!(bench.routed.contains(&dead));
    bench.run(Duration::from_millis(100));
    assert!(!bench.routed.contains(&dead), "its poll fails at once here; 0.7 s later on a wire");
}

#[test]
fn a_poll_for_which_there_was_no_room_condemns_nobody_and_is_made_up_for() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    bench.silence(&node, PollFault::NotAsked);
    bench.run(Duration::from_secs(20));
    assert_eq!(bench.belief(&node), Some(Belief::SuspectPush));
    assert!(bench.routed.contains(&node) && bench.terminated.is_empty());
    bench.deaf.insert(node.clone(), PollFault::Timeout);
    bench.run(Duration::from_secs(3));
    assert_eq!(bench.belief(&node), Some(Belief::Silent), "asked again within two seconds");
}

#[test]
fn polls_are_given_longer_while_half_the_fleet_is_suspected() {
    let mut bench = Bench::serving(4);
    for i in 0..4 {
        bench.mute.insert(bench.node(i));
    }
    let mut within = Vec::new();
    let end = bench.now + Duration::from_secs(3);
    while bench.now < end {
        bench.now = bench.fleet.deadline().unwrap_or(end).clamp(bench.now, end);
        let mut out = Vec::new();
        bench.fleet.step(bench.now, Event::Tick, &mut out);
        within.extend(out.iter().filter_map(|action| match action {
            Action::Poll { urgent: true, within, .. } => Some(within.as_millis()),
            _ => None,
        }));
    }
    assert_eq!(within, [700, 700, 1400, 1400]);
}

#[test]
fn a_node_that_keeps_falling_silent_stays_out_of_the_routes_while_another_works() {
    let mut bench = Bench::serving(2);
    let node = bench.node(0);
    for round in 1..=3 {
        bench.silence(&node, PollFault::Timeout);
        bench.run(Duration::from_secs(5));
        assert!(!bench.routed.contains(&node));
        bench.mute.clear();
        bench.deaf.clear();
        bench.run(Duration::from_secs(4));
        assert_eq!(bench.routed.contains(&node), round < 3, "round {round}");
    }
    assert!(bench.notes.iter().any(|note| note.kind == "flapping"));
    bench.run(Duration::from_secs(8));
    assert!(bench.routed.contains(&node), "the hold has ended");
    assert_eq!((bench.launched.len(), bench.terminated.len()), (2, 0));
}

#[test]
fn a_flapping_node_without_another_is_routed() {
    let mut bench = Bench::serving(1);
    let node = bench.node(0);
    for _ in 0..4 {
        bench.silence(&node, PollFault::Timeout);
        bench.run(Duration::from_secs(5));
        bench.mute.clear();
        bench.deaf.clear();
        bench.run(Duration::from_secs(3));
        assert!(bench.routed.contains(&node));
    }
}
