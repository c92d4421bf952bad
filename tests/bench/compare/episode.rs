//! Minutes of a small fleet, and what each witness gets to see of it.
//!
//! Every question has one answer for one seed: whether a packet is lost depends on who sent it and when, so that each
//! rule meets the same network.

use std::time::Duration;

use cic_common::time::Mono;
use fleet_tests::world::rng::Rng;

/// One way over the network: a region's neighbours.
const DELAY_US: (u64, u64) = (1_000, 5_000);

/// First retransmission of an opening packet and of one on an open connection (RFC 6298, Linux).
const RTO_OPEN: Duration = Duration::from_secs(1);
const RTO: Duration = Duration::from_millis(200);

/// The probe timeout of an idle QUIC connection between neighbours (RFC 9002: three deviations and the delay of acks).
const PTO: Duration = Duration::from_millis(40);

/// A window without a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) from: Mono,
    pub(super) until: Mono,
    /// Node to controller, by heartbeat.
    pub(super) push: bool,
    /// Controller to node, by poll.
    pub(super) poll: bool,
    /// To its peers.
    pub(super) peers: bool,
}

/// One node's fate.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) zone: usize,
    /// Share of its packets that are lost on the way, 0.0 to 1.0.
    pub(super) loss: f64,
    pub(super) dies_at: Option<Mono>,
    /// It hangs rather than ends: its cloud goes on saying that it runs.
    pub(super) hangs: bool,
    pub(super) cuts: Vec<Cut>,
}

/// What the cloud's API is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    /// Says what it sees, this long after it happened.
    Late(Duration),
    Fails,
}

/// The whole.
#[derive(Debug, Clone)]
pub(super) struct Episode {
    pub(super) seed: u64,
    pub(super) span: Duration,
    pub(super) nodes: Vec<Plan>,
    /// The controller does not run in between.
    pub(super) stall: Option<(Mono, Mono)>,
    pub(super) cloud: Cloud,
}

/// Who a packet is for. Each draws its losses on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Beat = 1,
    Poll = 2,
    Prod = 3,
    Lease = 4,
    Probe = 5,
}

impl Episode {
    pub(super) fn end(&self) -> Mono {
        Mono::ZERO + self.span
    }

    pub(super) fn is_alive(&self, node: usize, at: Mono) -> bool {
        self.nodes[node].dies_at.is_none_or(|dies| at < dies)
    }

    /// The moments at which its heartbeats are sent, whether they arrive or not, and when they do.
    pub(super) fn beats(&self, node: usize) -> impl Iterator<Item = (Mono, Option<Mono>)> {
        let phase = self.draw(node, Use::Beat, 0, 0).ms(0, 1000);
        let mut count = 0u32;
        std::iter::from_fn(move || {
            count += 1;
            Some(Mono::ZERO + phase + Duration::from_secs(1) * (count - 1))
        })
        .take_while(|at| *at < self.end())
        .map(move |at| (at, self.datagram(node, Use::Beat, at, 0)))
    }

    /// When a datagram to or from the node arrives.
    pub(super) fn datagram(&self, node: usize, usage: Use, at: Mono, number: u64) -> Option<Mono> {
        let mut rng = self.draw(node, usage, at.as_millis(), number);
        let passes = self.is_alive(node, at) && !self.is_cut(node, usage, at);
        (passes && !rng.chance(self.nodes[node].loss)).then(|| at + transit(&mut rng))
    }

    /// When a request over a new TLS connection is answered, if it is by `until`: three round trips, each of which may
    /// lose its packets.
    pub(super) fn exchange(
        &self,
        node: usize,
        usage: Use,
        at: Mono,
        until: Mono,
        number: u64,
    ) -> Option<Mono> {
        let mut rng = self.draw(node, usage, at.as_millis(), number);
        let opened = self.trip(node, usage, at, until, RTO_OPEN, &mut rng)?;
        let greeted = self.trip(node, usage, opened, until, RTO, &mut rng)?;
        self.trip(node, usage, greeted, until, RTO, &mut rng)
    }

    /// When the answer to a prod arrives: asked on a stream that is repeated, answered by one datagram.
    pub(super) fn prodded(&self, node: usize, at: Mono, number: u64) -> Option<Mono> {
        let mut rng = self.draw(node, Use::Prod, at.as_millis(), number);
        let until = at + Duration::from_secs(2);
        let asked = self.trip(node, Use::Prod, at, until, PTO, &mut rng)?;
        (!rng.chance(self.nodes[node].loss)).then(|| asked + transit(&mut rng))
    }

    /// There and back, repeated after `timeout`, doubled each time.
    fn trip(
        &self,
        node: usize,
        usage: Use,
        at: Mono,
        until: Mono,
        timeout: Duration,
        rng: &mut Rng,
    ) -> Option<Mono> {
        let (mut sent, mut wait) = (at, timeout);
        while sent < until {
            let is_lost = rng.chance(self.nodes[node].loss) || rng.chance(self.nodes[node].loss);
            let arrives = sent + transit(rng) + transit(rng);
            if !is_lost && self.is_alive(node, sent) && !self.is_cut(node, usage, sent) {
                return (arrives <= until).then_some(arrives);
            }
            (sent, wait) = (sent + wait, wait * 2);
        }
        None
    }

    fn is_cut(&self, node: usize, usage: Use, at: Mono) -> bool {
        self.nodes[node].cuts.iter().any(|cut| {
            let concerns = match usage {
                Use::Beat | Use::Prod | Use::Lease => cut.push,
                Use::Poll => cut.poll,
                Use::Probe => cut.peers,
            };
            concerns && cut.from <= at && at < cut.until
        })
    }

    /// What the cloud's API says of it now: whether it runs. `None` when it does not answer.
    pub(super) fn listed(&self, node: usize, at: Mono) -> Option<bool> {
        match self.cloud {
            Cloud::Fails => None,
            Cloud::Late(lag) => {
                let plan = &self.nodes[node];
                Some(plan.hangs || plan.dies_at.is_none_or(|dies| at < dies + lag))
            }
        }
    }

    /// When the controller gets to what happens at `at`.
    pub(super) fn served(&self, at: Mono) -> Mono {
        match self.stall {
            Some((from, until)) if from <= at && at < until => until,
            Some(_) | None => at,
        }
    }

    pub(super) fn draw(&self, node: usize, usage: Use, at: u64, number: u64) -> Rng {
        let salt = (node as u64) << 48 ^ (usage as u64) << 40 ^ number << 32;
        Rng::new(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt ^ at)
    }
}

fn transit(rng: &mut Rng) -> Duration {
    Duration::from_micros(rng.range(DELAY_US.0, DELAY_US.1))
}
