//! The faults that the rules are tried on.

use std::time::Duration;

use cic_common::time::Mono;
use fleet_tests::world::rng::Rng;

use super::episode::{Cloud, Cut, Episode, Plan};

/// Nodes of an episode, in two zones.
const NODES: usize = 8;

/// The fault comes after this: every rule has learned what the links are like.
const WARM_S: u64 = 120;

/// One kind of fault.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// Somebody dies, so that there is a time to detection.
    pub(super) is_fatal: bool,
    make: fn(&mut Rng) -> Episode,
}

pub(super) const ALL: [Scenario; 15] = [
    fatal("crash", |rng| death(rng, 0.0, false)),
    fatal("freeze", |rng| death(rng, 0.0, true)),
    fatal("crash, 1 % loss", |rng| death(rng, 0.01, false)),
    fatal("crash, 5 % loss", |rng| death(rng, 0.05, false)),
    fatal("crash, 20 % loss", |rng| death(rng, 0.2, false)),
    fatal("freeze, 20 % loss", |rng| death(rng, 0.2, true)),
    fatal("crash, cloud API 2 min late", |rng| with_cloud(death(rng, 0.0, false), Cloud::Late(minutes(2)))),
    fatal("crash, cloud API fails", |rng| with_cloud(death(rng, 0.0, false), Cloud::Fails)),
    fatal("crash while the controller stalls 5 s", |rng| stalled(death(rng, 0.0, false), 5)),
    harmless("pushes lost one way, 5 min", |rng| cut(rng, 1, minutes(5), (true, false, false))),
    harmless("polls lost one way, 5 min", |rng| cut(rng, 1, minutes(5), (false, true, false))),
    harmless("cut off from the controller alone, 45 s", |rng| {
        cut(rng, 1, Duration::from_secs(45), (true, true, false))
    }),
    harmless("controller stalls 20 s", |rng| stalled(healthy(rng), 20)),
    harmless("whole zone silent, 4 min", |rng| cut(rng, NODES / 2, minutes(4), (true, true, true))),
    harmless("whole fleet silent, 4 min", |rng| cut(rng, NODES, minutes(4), (true, true, true))),
];

const fn fatal(name: &'static str, make: fn(&mut Rng) -> Episode) -> Scenario {
    Scenario { name, is_fatal: true, make }
}

const fn harmless(name: &'static str, make: fn(&mut Rng) -> Episode) -> Scenario {
    Scenario { name, is_fatal: false, make }
}

impl Scenario {
    pub(super) fn episode(&self, number: u64) -> Episode {
        let name = self.name.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31) ^ u64::from(byte));
        let mut rng = Rng::new(name ^ number << 20);
        let seed = rng.draw();
        Episode { seed, ..(self.make)(&mut rng) }
    }
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

fn healthy(_: &mut Rng) -> Episode {
    let plan = |node| Plan { zone: node * 2 / NODES, ..Plan::default() };
    Episode {
        seed: 0,
        span: Duration::from_secs(WARM_S + 480),
        nodes: (0..NODES).map(plan).collect(),
        stall: None,
        cloud: Cloud::Late(Duration::from_secs(10)),
    }
}

/// Power lost or a hang: nothing says goodbye.
fn death(rng: &mut Rng, loss: f64, hangs: bool) -> Episode {
    let mut episode = healthy(rng);
    for node in &mut episode.nodes {
        node.loss = loss;
    }
    episode.nodes[0].dies_at = Some(fault_at(rng));
    episode.nodes[0].hangs = hangs;
    episode
}

fn fault_at(rng: &mut Rng) -> Mono {
    Mono::from_millis(WARM_S * 1000) + rng.ms(0, 10_000)
}

fn with_cloud(episode: Episode, cloud: Cloud) -> Episode {
    Episode { cloud, ..episode }
}

/// The controller stands still just after the fault, or for no reason.
fn stalled(mut episode: Episode, for_s: u64) -> Episode {
    let from =
        episode.nodes[0].dies_at.unwrap_or(Mono::from_millis(WARM_S * 1000)) + Duration::from_millis(500);
    episode.stall = Some((from, from + Duration::from_secs(for_s)));
    episode
}

/// The first `count` nodes lose some of their paths for a while, and are well.
fn cut(rng: &mut Rng, count: usize, span: Duration, (push, poll, peers): (bool, bool, bool)) -> Episode {
    let mut episode = healthy(rng);
    let from = fault_at(rng);
    for node in &mut episode.nodes[..count] {
        node.cuts.push(Cut { from, until: from + span, push, poll, peers });
    }
    episode
}
