//! Which replica gets the next attempt.
//!
//! Power of two choices (Mitzenmacher 2001): of two random candidates the one with fewer requests in flight, and
//! of two alike the one whose last turn is longer ago. A replica that failed lately comes last, not never: when
//! all have failed lately, one of them is still the best there is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::{Clock, Mono};

/// First time out after a failure; doubled with each failure in a row.
const EJECTION_INITIAL: Duration = Duration::from_secs(1);

/// Longest time out. The controller routes a silent node out within 6 s; this holds when there is none.
const EJECTION_MAX: Duration = Duration::from_secs(10);

/// Nodes remembered; beyond it those that nothing is known of are forgotten.
const STANDINGS_MAX: usize = 1024;

#[derive(Debug, Default, Clone, Copy)]
struct Standing {
    in_flight: u32,
    last_turn: u64,
    ejected_until: Mono,
    ejection: Duration,
}

/// What this edge has seen of each replica. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    clock: Clock,
    board: Arc<Mutex<Board>>,
}

#[derive(Debug, Default)]
struct Board {
    standings: BTreeMap<NodeId, Standing>,
    turn: u64,
}

/// One attempt at a replica; counted as in flight while alive.
#[derive(Debug)]
pub(super) struct Turn {
    node: NodeId,
    board: Arc<Mutex<Board>>,
}

impl Choice {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, board: Arc::default() }
    }

    /// Picks one of `candidates` and counts it in; `None` when there are none.
    pub(super) fn pick(&self, candidates: &[NodeId]) -> Option<Turn> {
        let now = self.clock.now();
        let mut board = lock(&self.board);
        let node = board.pick(now, candidates, |below| fastrand::usize(..below))?.clone();
        board.enter(now, &node);
        drop(board);
        Some(Turn { node, board: Arc::clone(&self.board) })
    }

    /// The replica failed: it comes last for a while.
    pub(super) fn failed(&self, node: &NodeId) {
        lock(&self.board).failed(self.clock.now(), node);
    }

    /// The replica answered.
    pub(super) fn answered(&self, node: &NodeId) {
        lock(&self.board).answered(node);
    }
}

impl Turn {
    pub(super) fn node(&self) -> &NodeId {
        &self.node
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(standing) = lock(&self.board).standings.get_mut(&self.node) {
            standing.in_flight = standing.in_flight.saturating_sub(1);
        }
    }
}

impl Board {
    fn pick<'a>(
        &self,
        now: Mono,
        candidates: &'a [NodeId],
        mut random: impl FnMut(usize) -> usize,
    ) -> Option<&'a NodeId> {
        let standing = |node: &NodeId| self.standings.get(node).copied().unwrap_or_default();
        let (sound, ejected): (Vec<_>, Vec<_>) =
            candidates.iter().partition(|node| standing(node).ejected_until <= now);
        if sound.is_empty() {
            return ejected.into_iter().min_by_key(|node| standing(node).ejected_until);
        }
        let first = random(sound.len());
        // Any of the others, each alike.
        let second =
            if sound.len() > 1 { (first + 1 + random(sound.len() - 1)) % sound.len() } else { first };
        [sound[first], sound[second]].into_iter().min_by_key(|node| {
            let standing = standing(node);
            (standing.in_flight, standing.last_turn)
        })
    }

    fn enter(&mut self, now: Mono, node: &NodeId) {
        if self.standings.len() >= STANDINGS_MAX {
            self.standings.retain(|_, standing| standing.in_flight > 0 || standing.ejected_until > now);
        }
        self.turn += 1;
        let standing = self.standings.entry(node.clone()).or_default();
        standing.in_flight += 1;
        standing.last_turn = self.turn;
    }

    fn failed(&mut self, now: Mono, node: &NodeId) {
        let standing = self.standings.entry(node.clone()).or_default();
        standing.ejection = (standing.ejection * 2).clamp(EJECTION_INITIAL, EJECTION_MAX);
        standing.ejected_until = now + standing.ejection;
    }

    fn answered(&mut self, node: &NodeId) {
        if let Some(standing) = self.standings.get_mut(node) {
            standing.ejection = Duration::ZERO;
            standing.ejected_until = Mono::ZERO;
        }
    }
}

fn lock(board: &Mutex<Board>) -> std::sync::MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| NodeId::new(*name).unwrap()).collect()
    }

    fn pick(board: &Board, now_ms: u64, candidates: &[NodeId]) -> String {
        let first_two = |_below| 0;
        board.pick(Mono::from_millis(now_ms), candidates, first_two).unwrap().to_string()
    }

    #[test]
    fn replicas_alike_take_turns_and_the_busier_one_is_passed_over() {
        let both = nodes(&["a", "b"]);
        let mut board = Board::default();
        let mut row = Vec::new();
        for _ in 0..4 {
            let name = pick(&board, 0, &both);
            let node = NodeId::new(name.clone()).unwrap();
            board.enter(Mono::ZERO, &node);
            board.standings.get_mut(&node).unwrap().in_flight = 0;
            row.push(name);
        }
        assert!(row == ["a", "b", "a", "b"] || row == ["b", "a", "b", "a"], "{row:?}");
        board.standings.get_mut(&both[0]).unwrap().in_flight = 2;
        board.standings.get_mut(&both[1]).unwrap().in_flight = 1;
        assert_eq!(pick(&board, 0, &both), "b");
    }

    #[test]
    fn a_replica_that_failed_comes_last_for_a_growing_while() {
        let both = nodes(&["a", "b"]);
        let mut board = Board::default();
        let at = Mono::from_millis;
        board.failed(at(0), &both[0]);
        assert_eq!(pick(&board, 999, &both), "b");
        assert_eq!(pick(&board, 999, &both[..1]), "a", "the last one left is still tried");
        for (failure_at, back_at) in
            [(1000, 3000), (3000, 7000), (7000, 15_000), (15_000, 25_000), (25_000, 35_000)]
        {
            board.failed(at(failure_at), &both[0]);
            assert_eq!(board.standings[&both[0]].ejected_until, at(back_at));
        }
        board.answered(&both[0]);
        board.failed(at(40_000), &both[0]);
        assert_eq!(board.standings[&both[0]].ejected_until, at(41_000));
    }

    #[test]
    fn a_turn_counts_as_in_flight_until_it_is_dropped() {
        let choice = Choice::new(Clock::start());
        let one = nodes(&["a"]);
        let turn = choice.pick(&one).unwrap();
        assert_eq!(lock(&choice.board).standings[&one[0]].in_flight, 1);
        drop(turn);
        assert_eq!(lock(&choice.board).standings[&one[0]].in_flight, 0);
        assert!(choice.pick(&[]).is_none());
    }
}
