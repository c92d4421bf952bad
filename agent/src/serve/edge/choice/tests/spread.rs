//! Many requests through one edge, with seeded draws: what the rules come to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use cic_common::route::Class;
use cic_common::routing::{Policy, Routing};
use cic_common::time::Mono;

use super::super::affinity::hash;
use super::super::board::{Board, Wish};
use super::super::candidate::Candidate;
use super::super::load::Load;
use super::candidate;

/// A board before a fleet. Requests end in the order they came, `depth` later ones after them.
struct Stream {
    board: Board,
    rng: fastrand::Rng,
    candidates: Vec<Arc<Candidate>>,
    depth: usize,
    running: VecDeque<usize>,
    counts: BTreeMap<usize, u32>,
    load_most: u32,
}

impl Stream {
    fn new(seed: u64, depth: usize, candidates: Vec<Candidate>) -> Self {
        Self {
            board: Board::default(),
            rng: fastrand::Rng::with_seed(seed),
            candidates: candidates.into_iter().map(Arc::new).collect(),
            depth,
            running: VecDeque::new(),
            counts: BTreeMap::new(),
            load_most: 0,
        }
    }

    fn ask(&mut self, class: Class, prefix: Option<u64>) -> usize {
        let excluded = BTreeSet::new();
        let wish = Wish { candidates: &self.candidates, class, prefix, excluded: &excluded };
        let (at, _) = self.board.pick(Mono::ZERO, &wish, |below| self.rng.usize(..below)).unwrap();
        self.board.enter(Mono::ZERO, self.candidates[at].key());
        self.running.push_back(at);
        *self.counts.entry(at).or_default() += 1;
        self.load_most = self.load_most.max(self.board.standings[&self.candidates[at].key()].in_flight);
        if self.running.len() > self.depth
            && let Some(ended) = self.running.pop_front()
        {
            self.board.standings.get_mut(&self.candidates[ended].key()).unwrap().in_flight -= 1;
        }
        at
    }

    fn count(&self, at: usize) -> u32 {
        self.counts.get(&at).copied().unwrap_or(0)
    }
}

fn fleet(count: usize, routing: &Routing) -> Vec<Candidate> {
    (0..count).map(|n| candidate(&format!("node{n:03}"), None, None, routing)).collect()
}

#[test]
fn a_canary_gets_its_share_within_a_percent() {
    for (seed, canaries, weight, share) in
        [(1, 1, 11, 0.0109), (2, 9, 11, 0.099), (3, 3, 100, 0.25), (4, 9, 100, 0.5)]
    {
        let mut candidates = fleet(9, &Routing::default());
        let routing = Routing { weight, ..Routing::default() };
        let named = |n| candidate(&format!("canary{n:03}"), None, None, &routing);
        candidates.extend((0..canaries).map(named));
        let mut stream = Stream::new(seed, 40, candidates);
        for _ in 0..20_000 {
            stream.ask(Class::Standard, None);
        }
        let canary: u32 = (9..9 + canaries).map(|at| stream.count(at)).sum();
        let got = f64::from(canary) / 20_000.0;
        assert!((got - share).abs() < 0.01, "{canaries} canaries of weight {weight}: {got}, wanted {share}");
    }
}

#[test]
fn one_of_ten_goes_to_a_canary_of_weight_10_beside_90() {
    let stable = candidate("stable", None, None, &Routing { weight: 90, ..Routing::default() });
    let canary = candidate("canary", None, None, &Routing { weight: 10, ..Routing::default() });
    let mut stream = Stream::new(7, 30, vec![stable, canary]);
    let long = |n: u32| Some(hash(&n.to_le_bytes()));
    for n in 0..20_000 {
        stream.ask(Class::Standard, long(n % 5));
    }
    let canary = stream.count(1);
    assert!((1_800..2_200).contains(&canary), "{canary} of 20000, prefixes or not");
}

#[test]
fn power_of_two_spreads_and_keeps_the_fullest_near_the_mean() {
    for (policy, over_most) in [(Policy::PowerOfTwo, 4), (Policy::LeastLoad, 1), (Policy::RoundRobin, 1)] {
        let mut stream = Stream::new(11, 160, fleet(16, &Routing { policy, ..Routing::default() }));
        for _ in 0..16_000 {
            stream.ask(Class::Standard, None);
        }
        for at in 0..16 {
            let count = stream.count(at);
            assert!((900..=1_100).contains(&count), "{policy:?}: {count} of 16000 at {at}");
        }
        assert!(stream.load_most <= 10 + over_most, "{policy:?}: {} beside a mean of 10", stream.load_most);
    }
}

/// Requests whose replica is the one that its prefix had the last time, in percent of those that had one.
fn hits(stream: &mut Stream, requests: u32, mut prefix: impl FnMut(&mut fastrand::Rng) -> u64) -> f64 {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut last: BTreeMap<u64, usize> = BTreeMap::new();
    let (mut hits, mut known) = (0.0, 0.0);
    for _ in 0..requests {
        let prefix = hash(&prefix(&mut rng).to_le_bytes());
        let at = stream.ask(Class::Standard, Some(prefix));
        if let Some(before) = last.insert(prefix, at) {
            known += 1.0;
            hits += f64::from(u8::from(before == at));
        }
    }
    100.0 * hits / known
}

#[test]
fn under_even_load_most_requests_find_their_prefix_where_it_was() {
    // 4000 talks on 16 replicas. The fuller these are, the less chance decides who is above 1.25 times the mean.
    for (depth, least) in [(16, 90.0), (160, 70.0), (1600, 90.0)] {
        let even = |rng: &mut fastrand::Rng| rng.u64(..4000);
        let mut stream = Stream::new(3, depth, fleet(16, &Routing::default()));
        let with = hits(&mut stream, 12_000, even);
        let off = Routing { prefix_affinity: false, ..Routing::default() };
        let without = hits(&mut Stream::new(3, depth, fleet(16, &off)), 12_000, even);
        assert!(
            with >= least && without <= 10.0,
            "{depth} at once: {with} % with affinity, {without} % without"
        );
    }
}

#[test]
fn under_skew_no_replica_carries_more_than_the_bound() {
    // Every other request has the same beginning: without the bound one replica of 16 would carry half of all.
    let skewed = |rng: &mut fastrand::Rng| if rng.bool() { 0 } else { rng.u64(1..400) };
    for depth in [16, 160, 800] {
        let mut stream = Stream::new(9, depth, fleet(16, &Routing::default()));
        let hits = hits(&mut stream, 12_000, skewed);
        let bound = ((depth + 1) * 125).div_ceil(1600).max(4);
        assert!(stream.load_most as usize <= bound, "{} beside a bound of {bound}", stream.load_most);
        assert!(hits >= 25.0, "{hits} % at {depth} at once");
    }
}

#[test]
fn a_replica_that_goes_moves_only_its_own_prefixes() {
    let all = fleet(16, &Routing::default());
    let mut stream = Stream::new(1, 0, all.clone());
    let mut less = Stream::new(1, 0, all[..15].to_vec());
    let mut moved = 0;
    for n in 0..2_000u64 {
        let prefix = Some(hash(&n.to_le_bytes()));
        let (before, after) = (stream.ask(Class::Standard, prefix), less.ask(Class::Standard, prefix));
        moved += u32::from(before != after);
        assert!(before == after || before == 15);
    }
    assert!((90..160).contains(&moved), "{moved} of 2000, a sixteenth is 125");
}

#[test]
fn what_peers_bring_to_a_replica_is_seen() {
    let mut stream = Stream::new(1, 0, fleet(2, &Routing::default()));
    let standing = stream.board.standings.entry(stream.candidates[0].key()).or_default();
    standing.loaded(Mono::ZERO, Load { in_flight: 20, waiting: Some(5) });
    for _ in 0..100 {
        stream.ask(Class::Standard, None);
    }
    assert_eq!((stream.count(0), stream.count(1)), (0, 100));
    let after = Mono::ZERO + Duration::from_secs(4);
    assert_eq!(stream.board.standings[&stream.candidates[0].key()].load(after), 0, "and forgotten");
}
