//! Kubernetes: a lease renewed each 10 s, NotReady after 50 s without, pods evicted after 300 s of that.
//!
//! Source: kubelet `nodeLeaseDurationSeconds` and its renewal at a quarter of 40 s, kube-controller-manager
//! `--node-monitor-grace-period` (50 s since 1.32) and `--node-monitor-period` (5 s), the default toleration of
//! `node.kubernetes.io/unreachable` (300 s), and `--unhealthy-zone-threshold` (55 % of a zone, at least three nodes:
//! evictions stop there in a small cluster, and everywhere when every zone is unhealthy).

use std::time::Duration;

use cic_common::time::Mono;

use super::episode::{Episode, Use};
use super::verdict::Verdict;

const RENEW: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(50);
const LOOK: Duration = Duration::from_secs(5);
const EVICT_AFTER: Duration = Duration::from_secs(300);
const ZONE_SHARE: f64 = 0.55;
const ZONE_MIN: usize = 3;

/// A renewal fails after this and is tried again at once, five times.
const RENEW_WITHIN: Duration = Duration::from_secs(5);
const TRIES: u32 = 5;

pub(super) fn judge(episode: &Episode) -> Vec<Verdict> {
    let count = episode.nodes.len();
    let renewals: Vec<Vec<Mono>> = (0..count).map(|node| renewals(episode, node)).collect();
    let mut verdicts = vec![Verdict::default(); count];
    let mut not_ready_since: Vec<Option<Mono>> = vec![None; count];
    let mut seen: Vec<usize> = vec![0; count];
    let mut renewed: Vec<Mono> = vec![Mono::ZERO; count];
    let mut look = Mono::ZERO + LOOK;
    let mut stalled_until = Mono::ZERO;
    while look < episode.end() {
        let now = episode.served(look).max(look);
        if now > look {
            stalled_until = now;
        }
        for node in 0..count {
            while renewals[node].get(seen[node]).is_some_and(|at| *at <= now) {
                renewed[node] = renewals[node][seen[node]];
                seen[node] += 1;
            }
            // What the API server took while the controller stood still was taken all the same.
            let is_ready = now.since(renewed[node].max(stalled_until - GRACE)) < GRACE;
            not_ready_since[node] = if is_ready { None } else { not_ready_since[node].or(Some(now)) };
            verdicts[node].out_at = not_ready_since[node];
            verdicts[node].was_out |= !is_ready;
        }
        for node in 0..count {
            let zone = episode.nodes[node].zone;
            let members = (0..count).filter(|n| episode.nodes[*n].zone == zone);
            let unready = members.clone().filter(|n| not_ready_since[*n].is_some()).count();
            #[allow(clippy::cast_precision_loss)]
            let is_disrupted = unready >= ZONE_MIN && unready as f64 >= ZONE_SHARE * members.count() as f64;
            let is_due = not_ready_since[node].is_some_and(|since| now.since(since) >= EVICT_AFTER);
            if is_due && !is_disrupted && verdicts[node].replaced_at.is_none() {
                verdicts[node].replaced_at = Some(now);
                verdicts[node].killed_at = Some(now);
            }
        }
        look = now + LOOK;
    }
    verdicts
}

fn renewals(episode: &Episode, node: usize) -> Vec<Mono> {
    let phase = episode.draw(node, Use::Lease, 0, 0).ms(0, 10_000);
    let mut at = Mono::ZERO + phase;
    let mut renewals = Vec::new();
    while at < episode.end() {
        let mut sent = at;
        for number in 0..TRIES {
            let until = sent + RENEW_WITHIN;
            if let Some(done) = episode.exchange(node, Use::Lease, sent, until, number.into()) {
                renewals.push(done);
                break;
            }
            sent = until;
        }
        at = at + RENEW;
    }
    renewals
}
