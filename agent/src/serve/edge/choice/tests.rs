//! The rules one by one, and what they make of many requests.

mod spread;

use std::collections::BTreeSet;
use std::sync::Arc;

use cic_common::id::NodeId;
use cic_common::route::Class;
use cic_common::routing::{Policy, Routing};
use cic_common::time::{Clock, Mono};

use super::super::pool::Upstream;
use super::board::{Choice, Wish};
use super::candidate::Candidate;
use super::circuit::Gate;
use super::pick::{How, Seen, choose};

/// One replica as a rule's table writes it.
#[derive(Debug, Clone)]
struct Replica {
    name: &'static str,
    routing: Routing,
    gpu: Option<&'static str>,
    is_near: bool,
    load: u32,
    slowness: u32,
    last_turn: u64,
    gate: Gate,
}

fn replica(name: &'static str) -> Replica {
    Replica {
        name,
        routing: Routing::default(),
        gpu: None,
        is_near: false,
        load: 0,
        slowness: 0,
        last_turn: 0,
        gate: Gate::In,
    }
}

impl Replica {
    fn load(self, load: u32) -> Self {
        Self { load, ..self }
    }

    fn tier(mut self, tier: u8) -> Self {
        self.routing.tier = tier;
        self
    }

    fn weight(mut self, weight: u16) -> Self {
        self.routing.weight = weight;
        self
    }

    fn policy(mut self, policy: Policy) -> Self {
        self.routing.policy = policy;
        self
    }

    fn near(self) -> Self {
        Self { is_near: true, ..self }
    }

    fn out(self, until_ms: u64) -> Self {
        Self { gate: Gate::Out { until: Mono::from_millis(until_ms) }, ..self }
    }

    fn doubted(self, until_ms: u64) -> Self {
        Self { gate: Gate::Doubted { until: Mono::from_millis(until_ms) }, ..self }
    }

    fn candidate(&self) -> Candidate {
        candidate(self.name, None, self.gpu, &self.routing)
    }
}

fn candidate(name: &str, zone: Option<&str>, gpu: Option<&str>, routing: &Routing) -> Candidate {
    let node = NodeId::new(name).unwrap();
    let upstream = Upstream::Peer { node, address: "".into() };
    Candidate::new(upstream, zone.map(str::to_owned), gpu, routing)
}

/// All that can be picked, whatever is drawn.
fn picks(replicas: &[Replica], class: Class, prefix: Option<u64>) -> BTreeSet<(&'static str, &'static str)> {
    let candidates: Vec<Candidate> = replicas.iter().map(Replica::candidate).collect();
    let once = |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let facts = replicas.iter().zip(&candidates).enumerate();
        let mut seen: Vec<Seen<'_>> = facts
            .map(|(at, (replica, candidate))| Seen {
                candidate,
                at,
                gate: replica.gate,
                load: replica.load,
                slowness: replica.slowness,
                last_turn: replica.last_turn,
                is_near: replica.is_near,
            })
            .collect();
        let (at, how) = choose(&mut seen, class, prefix, |below| rng.usize(..below))?;
        let how = match how {
            How::Only => "only",
            How::LeastBad => "least bad",
            How::Prefix => "prefix",
            How::Policy => "policy",
        };
        Some((replicas[at].name, how))
    };
    (0..200).filter_map(once).collect()
}

fn assert_rules(class: Class, rules: &[(&str, &[Replica], &[&str])]) {
    for (rule, replicas, expected) in rules {
        let names: BTreeSet<&str> = picks(replicas, class, None).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, expected.iter().copied().collect(), "{rule}");
    }
}

#[test]
fn only_the_gpu_that_is_needed_is_asked_and_nothing_overrides_that() {
    let big = |name, gpu| {
        let routing =
            Routing { parameters_b: Some(405), gpu_needed: Some("h200".to_owned()), ..Routing::default() };
        Replica { gpu, routing, ..replica(name) }
    };
    assert_rules(
        Class::Standard,
        &[
            ("it has it", &[big("a", Some("h200")), big("b", Some("l4")), big("c", None)], &["a"]),
            ("even out it is the one", &[big("a", Some("h200")).out(9), big("b", Some("l4"))], &["a"]),
            ("none has it", &[big("a", Some("l4")), big("b", None)], &[]),
        ],
    );
}

#[test]
fn who_is_out_is_skipped_and_who_is_back_soonest_is_tried_when_all_are() {
    let (a, b, c) = (replica("a"), replica("b"), replica("c"));
    assert_rules(
        Class::Standard,
        &[
            ("one is out", &[a.clone().out(9), b.clone().load(90), c.clone().load(90)], &["b", "c"]),
            ("two of three are out", &[a.clone().out(9), b.clone().out(5), c.clone().load(90)], &["c"]),
            ("all are out", &[a.clone().out(9), b.clone().out(5), c.clone().out(7)], &["b"]),
            ("half erred", &[a.clone().doubted(9), b.clone()], &["b"]),
            (
                "most erred: a request that breaks engines",
                &[a.clone().doubted(9), b.clone().doubted(9), c.clone()],
                &["a", "b", "c"],
            ),
            (
                "most are out, one of them erred",
                &[a.clone().doubted(9), b.clone().out(9), c.clone()],
                &["a", "c"],
            ),
            ("all erred", &[a.clone().doubted(9), b.clone().doubted(5)], &["a", "b"]),
            ("the last one is tried", &[a.out(9)], &["a"]),
            ("nobody is there", &[], &[]),
        ],
    );
    assert_eq!(picks(&[b.out(9), c.out(5)], Class::Standard, Some(7)), [("c", "least bad")].into());
}

#[test]
fn weight_0_is_asked_only_when_nothing_else_is_left() {
    let (idle, loaded) = (replica("idle").weight(0), replica("loaded").load(900));
    assert_rules(
        Class::Standard,
        &[
            ("another is left", &[idle.clone(), loaded.clone()], &["loaded"]),
            ("the other is out", &[idle.clone(), loaded.out(9)], &["idle"]),
            ("none has weight", &[idle, replica("also").weight(0)], &["also", "idle"]),
        ],
    );
}

#[test]
fn a_class_goes_to_its_tier_unless_that_is_overrun() {
    let all = |loads: [u32; 3]| {
        [
            replica("one").tier(1).load(loads[0]),
            replica("two").tier(2).load(loads[1]),
            replica("three").tier(3).load(loads[2]),
        ]
    };
    assert_rules(
        Class::LatencyCritical,
        &[
            ("tier 1 first", &all([0, 0, 0]), &["one"]),
            ("16 more than the others", &all([16, 0, 0]), &["one"]),
            ("17 more, and the next tier is as good", &all([17, 0, 0]), &["two"]),
            ("twice the others and 16", &all([56, 20, 20]), &["one"]),
            ("both overrun", &all([60, 61, 0]), &["one", "three"]),
            ("tier 1 is out", &[replica("one").tier(1).out(9), replica("three").tier(3)], &["three"]),
        ],
    );
    assert_rules(
        Class::Batch,
        &[
            ("tier 3 first", &all([0, 0, 0]), &["three"]),
            ("overrun", &all([0, 0, 17]), &["two"]),
            ("none in tier 3", &all([0, 0, 0])[..2], &["two"]),
        ],
    );
    let standard = all([3, 3, 3]);
    assert_rules(Class::Standard, &[("any", &standard, &["one", "two", "three"])]);
}

#[test]
fn the_own_zone_goes_first_unless_it_carries_more_than_the_others() {
    let (near, far) = (replica("near").near(), replica("far"));
    assert_rules(
        Class::Standard,
        &[
            ("idle", &[far.clone(), near.clone()], &["near"]),
            ("a little more", &[far.clone().load(10), near.clone().load(23)], &["near"]),
            ("too much", &[far.clone().load(10), near.clone().load(24)], &["far"]),
            (
                "one of two near is busy",
                &[far.clone(), near.clone().load(15), replica("free").near()],
                &["free"],
            ),
            ("nobody is near", &[far.clone(), replica("there")], &["far", "there"]),
            ("the near one is out", &[far, near.out(9)], &["far"]),
        ],
    );
}

#[test]
fn a_weight_is_drawn_before_the_zone_so_that_a_canary_elsewhere_gets_its_share() {
    let replicas =
        [replica("stable").near().weight(90), replica("other").weight(90), replica("canary").weight(10)];
    assert_rules(
        Class::Standard,
        &[("both weights, and the zone within one", &replicas, &["stable", "canary"])],
    );
}

#[test]
fn load_comes_before_slowness_and_slowness_before_whose_turn_it_is() {
    let one = |name, load, slowness, last_turn| Replica { load, slowness, last_turn, ..replica(name) };
    for (better, worse) in [((0, 9, 9), (1, 0, 0)), ((1, 0, 9), (1, 1, 0)), ((1, 1, 4), (1, 1, 5))] {
        let pair = [one("better", better.0, better.1, better.2), one("worse", worse.0, worse.1, worse.2)];
        for policy in [Policy::PowerOfTwo, Policy::LeastLoad] {
            let pair = pair.clone().map(|one| one.policy(policy));
            assert_rules(Class::Standard, &[(policy.as_str(), &pair, &["better"])]);
        }
    }
}

#[test]
fn each_policy_looks_at_what_it_says() {
    let three = |policy| {
        let one = |name, load, last_turn| Replica { load, last_turn, ..replica(name) }.policy(policy);
        [one("least", 1, 9), one("middle", 2, 8), one("most", 3, 7)]
    };
    assert_rules(
        Class::Standard,
        &[
            (
                "the less loaded of two, never the most loaded",
                &three(Policy::PowerOfTwo),
                &["least", "middle"],
            ),
            ("longest not asked, whatever its load", &three(Policy::RoundRobin), &["most"]),
            ("the least loaded of all", &three(Policy::LeastLoad), &["least"]),
        ],
    );
}

#[test]
fn a_prefix_goes_to_one_replica_until_that_carries_too_much() {
    let fleet: Vec<Replica> = ["a", "b", "c", "d"].map(replica).to_vec();
    let affine = |fleet: &[Replica]| {
        let all = picks(fleet, Class::Standard, Some(42));
        assert_eq!(all.len(), 1, "whatever is drawn: {all:?}");
        let (name, how) = all.into_iter().next().unwrap();
        assert_eq!(how, "prefix");
        name
    };
    let first = affine(&fleet);
    let with_load = |load: u32, others: u32| -> Vec<Replica> {
        let load_of = |one: &Replica| if one.name == first { load } else { others };
        fleet.iter().map(|one| one.clone().load(load_of(one))).collect()
    };
    // With the next one: (14 + 30 + 1) / 4 * 1.25 = 14.1, so 15 at most; (15 + 30 + 1) / 4 * 1.25 = 14.4.
    for (load, others, stays) in
        [(3, 0, true), (4, 0, false), (10, 10, true), (14, 10, true), (15, 10, false)]
    {
        assert_eq!(affine(&with_load(load, others)) == first, stays, "{load} beside {others}");
    }
    let second = affine(&with_load(100, 0));
    let without: Vec<Replica> = fleet.iter().filter(|one| one.name != first).cloned().collect();
    assert_eq!(affine(&without), second, "the next in order, as if the first were gone");

    let off = fleet.iter().cloned().map(|mut one| {
        one.routing.prefix_affinity = false;
        one
    });
    assert!(picks(&off.collect::<Vec<_>>(), Class::Standard, Some(42)).len() > 1);
    assert!(picks(&fleet, Class::Standard, None).len() > 1, "a short prompt follows the policy");
}

#[test]
fn a_turn_counts_as_in_flight_until_it_is_dropped_and_what_was_tried_is_left_out() {
    let choice = Choice::new(Clock::start(), None);
    let candidates = ["a", "b"].map(|name| Arc::new(candidate(name, None, None, &Routing::default())));
    let pick = |excluded: &[&NodeId]| {
        let excluded = excluded.iter().map(|node| (*node).clone()).collect();
        let wish =
            Wish { candidates: &candidates, class: Class::Standard, prefix: None, excluded: &excluded };
        choice.pick(&wish)
    };
    let first = pick(&[]).unwrap();
    let second = pick(&[]).unwrap();
    assert_ne!(first.upstream().node(), second.upstream().node(), "the other is in flight");
    let (kept, dropped) = (second.upstream().node().clone(), first.upstream().node().clone());
    drop(first);
    for _ in 0..4 {
        assert_eq!(pick(&[]).unwrap().upstream().node(), &dropped);
    }
    assert_eq!(pick(&[&dropped]).unwrap().upstream().node(), &kept);
    assert!(pick(&[&dropped, &kept]).is_none());
}

#[test]
fn a_replica_that_failed_erred_or_refused_is_passed_over_until_it_answers() {
    let choice = Choice::new(Clock::start(), None);
    let candidates = ["a", "b"].map(|name| Arc::new(candidate(name, None, None, &Routing::default())));
    let bad = NodeId::new("a").unwrap();
    let picked = || {
        let excluded = BTreeSet::new();
        let wish =
            Wish { candidates: &candidates, class: Class::Standard, prefix: None, excluded: &excluded };
        let names = (0..20).map(|_| choice.pick(&wish).unwrap().upstream().node().to_string());
        names.collect::<BTreeSet<String>>().len()
    };
    for (what, act) in [
        ("failed", Choice::failed as fn(&Choice, &NodeId)),
        ("erred", Choice::erred),
        ("refused", Choice::refused),
    ] {
        act(&choice, &bad);
        assert_eq!(picked(), 1, "{what}");
        choice.answered(&bad, None);
        assert_eq!(picked(), 2, "{what}, then answered");
    }
}
