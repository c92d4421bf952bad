//! Nomad: a client beats within a time to live that the server sets; that and a grace without, and it is down, and its
//! work is placed elsewhere at once.
//!
//! Source: server options `min_heartbeat_ttl` (10 s, spread by up to as much again) and `heartbeat_grace` (10 s). A
//! client beats at half to two thirds of its time to live.

use std::time::Duration;

use cic_common::time::Mono;

use super::episode::{Episode, Use};
use super::verdict::Verdict;

const TTL_S: (u64, u64) = (10, 20);
const GRACE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
const WITHIN: Duration = Duration::from_secs(5);

pub(super) fn judge(episode: &Episode) -> Vec<Verdict> {
    (0..episode.nodes.len()).map(|node| Verdict::at_once(down_at(episode, node))).collect()
}

fn down_at(episode: &Episode, node: usize) -> Option<Mono> {
    let mut rng = episode.draw(node, Use::Lease, 1, 1);
    let mut heard = Mono::ZERO;
    loop {
        let ttl = rng.ms(TTL_S.0 * 1000, TTL_S.1 * 1000);
        let expires = heard + ttl + GRACE;
        let mut sent = heard + ttl.mul_f64(0.5);
        let next = loop {
            if sent >= expires {
                break None;
            }
            if let Some(at) = episode.exchange(node, Use::Lease, sent, sent + WITHIN, 7) {
                break Some(at).filter(|at| *at < expires);
            }
            sent = sent + RETRY;
        };
        match next {
            // The server's timers stand still with it.
            None if expires >= episode.end() => return None,
            None => return Some(episode.served(expires)),
            Some(at) if at >= episode.end() => return None,
            Some(at) => heard = at,
        }
    }
}
