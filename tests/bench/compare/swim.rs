//! SWIM with suspicion, as memberlist's LAN profile has it: each member probes one other a second, asks three more to
//! probe it, tries TCP beside them, then suspects it; it is failed when nothing refutes that in time.
//!
//! Source: memberlist `DefaultLANConfig` (ProbeInterval 1 s, ProbeTimeout 500 ms, IndirectChecks 3, SuspicionMult 4,
//! SuspicionMaxTimeoutMult 6, GossipInterval 200 ms) and Lifeguard's shrinking timeout. Its probes run between peers,
//! so a controller cut off, or standing still, is no part of it.

use std::time::Duration;

use cic_common::time::Mono;

use super::episode::{Episode, Use};
use super::verdict::Verdict;

const PERIOD: Duration = Duration::from_secs(1);
const PROBE_WITHIN: Duration = Duration::from_millis(500);
const INDIRECT: u64 = 3;
const MULTIPLE: f64 = 4.0;
const MAX_FACTOR: f64 = 6.0;

/// Others whose suspicion takes the timeout down to its least.
const CONFIRMATIONS: f64 = 2.0;

/// Between the gossip that may carry a suspicion to the suspect, and its refutation back.
const GOSSIP: Duration = Duration::from_millis(200);

pub(super) fn judge(episode: &Episode) -> Vec<Verdict> {
    let count = episode.nodes.len();
    (0..count).map(|node| Verdict::at_once(failed_at(episode, node, count))).collect()
}

fn failed_at(episode: &Episode, node: usize, count: usize) -> Option<Mono> {
    let mut rng = episode.draw(node, Use::Probe, 2, 2);
    let mut at = Mono::ZERO + rng.ms(0, 1000);
    let mut suspected: Option<(Mono, f64)> = None;
    while at < episode.end() {
        // Of the others, each of which probes one member a second, about one has picked this node.
        if probe_fails(episode, node, at) {
            suspected = match suspected {
                None => Some((at + PERIOD, 0.0)),
                Some((since, confirmed)) => Some((since, (confirmed + 1.0).min(CONFIRMATIONS))),
            };
        }
        if let Some((since, confirmed)) = suspected {
            let timeout = timeout(count, confirmed);
            if refuted(episode, node, since.max(at), at + PERIOD) {
                suspected = None;
            } else if at >= since + timeout {
                return Some(since + timeout);
            }
        }
        at = at + PERIOD;
    }
    None
}

/// How long a suspicion stands with this many confirmations.
pub(super) fn timeout(count: usize, confirmed: f64) -> Duration {
    #[allow(clippy::cast_precision_loss)]
    let least = MULTIPLE * (count as f64).log10().max(1.0);
    let most = least * MAX_FACTOR;
    let share = (confirmed + 1.0).ln() / (CONFIRMATIONS + 1.0).ln();
    Duration::from_secs_f64((most - share * (most - least)).max(least))
}

fn probe_fails(episode: &Episode, node: usize, at: Mono) -> bool {
    let ping = |at: Mono, number: u64| {
        episode.datagram(node, Use::Probe, at, number).is_some()
            && episode.datagram(node, Use::Probe, at + Duration::from_millis(2), number + 100).is_some()
    };
    let late = at + PROBE_WITHIN;
    let until = at + PERIOD;
    !ping(at, 0)
        && !(1..=INDIRECT).any(|number| ping(late, number))
        && episode.exchange(node, Use::Probe, late, until, 50).is_none()
}

/// Gossip reaches the suspect and its word comes back within this period.
fn refuted(episode: &Episode, node: usize, from: Mono, until: Mono) -> bool {
    let mut at = from;
    while at < until {
        let there = episode.datagram(node, Use::Probe, at, 60).is_some();
        if there && episode.datagram(node, Use::Probe, at + Duration::from_millis(3), 61).is_some() {
            return true;
        }
        at = at + GOSSIP;
    }
    false
}
