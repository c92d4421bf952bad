//! What follows a push path's silence, before it is believed.
//!
//! ```text
//! silence --> urgent poll (two connections)  ---.
//!        '--> prods over the push path itself --+--> an answer: alive     neither: silent
//! ```
//! A prod asks for a heartbeat at once. Its way there is repeated by QUIC until acknowledged, so on a link that loses
//! much a live node answers one of several; to a dead one they cost a datagram each.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::Mono;

use super::belief::Freshness;
use super::fleet::Fleet;
use super::{Action, Message};

/// Between prods: the answer to the last has had two round trips between far regions.
const PROD_INTERVAL: Duration = Duration::from_millis(400);

/// Prods of one silence: until the longest poll has run out.
const PRODS_MAX: u8 = 8;

/// This many suspected at once, and at least half of all nodes, or all of a small fleet: then it may well be this controller, or
/// its network, that is in trouble, and polls are given longer.
const CROWD_MIN: usize = 3;
const CROWD_SHARE: usize = 2;

/// How much longer.
const CROWD_FACTOR: u32 = 2;

/// The prods of one silence.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Prods {
    count: u8,
    next_at: Option<Mono>,
}

impl Prods {
    pub(super) fn begin(&mut self, now: Mono) {
        *self = Self { count: 0, next_at: Some(now) };
    }

    pub(super) fn end(&mut self) {
        self.next_at = None;
    }

    pub(super) fn next_at(&self) -> Option<Mono> {
        self.next_at
    }

    /// Whether one is due; counts it.
    fn take(&mut self, now: Mono) -> bool {
        if self.next_at.is_none_or(|at| now < at) {
            return false;
        }
        self.count += 1;
        self.next_at = (self.count < PRODS_MAX).then(|| now + PROD_INTERVAL);
        true
    }
}

impl Fleet {
    /// Keeps count of the suspected, and begins or ends the prods of a node whose push path turned.
    pub(super) fn push_turned(&mut self, now: Mono, id: &NodeId, was: Freshness, push: Freshness) {
        match (was == Freshness::Stale, push == Freshness::Stale) {
            (false, true) => {
                self.suspected += 1;
                if let Some(node) = self.nodes.get_mut(id) {
                    node.prods.begin(now);
                }
            }
            (true, false) => {
                self.suspected = self.suspected.saturating_sub(1);
                if let Some(node) = self.nodes.get_mut(id) {
                    node.prods.end();
                }
            }
            (false, false) | (true, true) => {}
        }
    }

    pub(super) fn prod_if_due(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.prods.take(now) {
            self.challenge_last += 1;
            let message = Message::Challenge { number: self.challenge_last };
            out.push(Action::Send { node: id.clone(), message });
        }
    }

    /// So many are suspected at once that this controller, or its network, may be what is in trouble.
    pub(super) fn is_crowd(&self) -> bool {
        let is_all = self.suspected >= 2 && self.suspected == self.nodes.len();
        is_all || (self.suspected >= CROWD_MIN && self.suspected * CROWD_SHARE >= self.nodes.len())
    }

    /// What an urgent poll of this node is given now.
    pub(super) fn confirm_within(&self, id: &NodeId) -> Duration {
        let Some(node) = self.nodes.get(id) else { return Duration::ZERO };
        let within = node.push.confirm_within(node.poll.trip());
        if self.is_crowd() { within * CROWD_FACTOR } else { within }
    }
}
