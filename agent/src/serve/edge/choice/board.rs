//! What an edge has seen of all replicas, and the choice drawn from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::route::Class;
use cic_common::time::{Clock, Mono};
use hyper::header::HeaderValue;
use tracing::debug;

use super::super::pool::Upstream;
use super::candidate::{Candidate, key};
use super::circuit::Fault;
use super::load::Load;
use super::pick::{How, Seen, choose};
use super::standing::Standing;

/// Nodes remembered; beyond it those that nothing is known of are forgotten.
const STANDINGS_MAX: usize = 1024;

/// What one attempt wishes for.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Wish<'a> {
    pub(in super::super) candidates: &'a [Arc<Candidate>],
    pub(in super::super) class: Class,
    /// See [`super::Prompt`]; `None` where the prompt is too short to matter.
    pub(in super::super) prefix: Option<u64>,
    /// Tried before for the same request.
    pub(in super::super) excluded: &'a BTreeSet<NodeId>,
}

/// What this edge has seen of each replica. Clones share it.
#[derive(Debug, Clone)]
pub(in super::super) struct Choice {
    clock: Clock,
    board: Arc<Mutex<Board>>,
}

/// One attempt at a replica; counted as in flight while alive.
#[derive(Debug)]
pub(in super::super) struct Turn {
    candidate: Arc<Candidate>,
    /// The moment of the trial that this attempt is.
    trial: Option<Mono>,
    board: Arc<Mutex<Board>>,
}

impl Choice {
    /// `zone` is the edge's own; without one no replica is nearer than another.
    pub(in super::super) fn new(clock: Clock, zone: Option<String>) -> Self {
        Self { clock, board: Arc::new(Mutex::new(Board { zone, ..Board::default() })) }
    }

    /// Picks one of the candidates and counts it in; `None` when none is left.
    pub(in super::super) fn pick(&self, wish: &Wish<'_>) -> Option<Turn> {
        let now = self.clock.now();
        let mut board = lock(&self.board);
        let (at, how) = board.pick(now, wish, |below| fastrand::usize(..below))?;
        let candidate = Arc::clone(wish.candidates.get(at)?);
        let trial = board.enter(now, candidate.key());
        drop(board);
        debug!(node = %candidate.node(), ?how, is_trial = trial.is_some(), "replica chosen");
        Some(Turn { candidate, trial, board: Arc::clone(&self.board) })
    }

    /// The replica could not be reached, or was lost in the middle of an answer: it is out for a while.
    pub(in super::super) fn failed(&self, node: &NodeId) {
        self.note(node, |now, standing| standing.circuit.failed(now, Fault::Lost));
    }

    /// Its engine had the request and failed: it is out for a while, unless too many would be.
    pub(in super::super) fn erred(&self, node: &NodeId) {
        self.note(node, |now, standing| standing.circuit.failed(now, Fault::Erred));
    }

    /// The replica takes no requests now, as when it drains: it is passed over, and that is no failure.
    pub(in super::super) fn refused(&self, node: &NodeId) {
        self.note(node, |now, standing| standing.refused(now));
    }

    /// The replica answered; a streamed answer's first event came after `first_token`.
    pub(in super::super) fn answered(&self, node: &NodeId, first_token: Option<Duration>) {
        self.note(node, |now, standing| {
            standing.answered();
            if let Some(after) = first_token {
                standing.first_token(now, after);
            }
        });
    }

    /// The replica's node says what its engine carries.
    pub(in super::super) fn loaded(&self, node: &NodeId, load: Load) {
        self.note(node, |now, standing| standing.loaded(now, load));
    }

    /// The same of one that refused: what we have under way there may be refused as well, and is in nobody's count.
    pub(in super::super) fn loaded_without_us(&self, node: &NodeId, load: Load) {
        self.note(node, |now, standing| standing.loaded_without_us(now, load));
    }

    fn note(&self, node: &NodeId, change: impl FnOnce(Mono, &mut Standing)) {
        let (now, key) = (self.clock.now(), key(node));
        change(now, lock(&self.board).standings.entry(key).or_default());
    }
}

impl Turn {
    pub(in super::super) fn upstream(&self) -> &Upstream {
        self.candidate.upstream()
    }

    pub(in super::super) fn host(&self) -> &HeaderValue {
        self.candidate.host()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(standing) = lock(&self.board).standings.get_mut(&self.candidate.key()) {
            standing.in_flight = standing.in_flight.saturating_sub(1);
            if let Some(trial) = self.trial {
                standing.circuit.left(trial);
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) zone: Option<String>,
    pub(super) standings: BTreeMap<u64, Standing>,
    turn: u64,
}

impl Board {
    pub(super) fn pick(
        &self,
        now: Mono,
        wish: &Wish<'_>,
        draw: impl FnMut(usize) -> usize,
    ) -> Option<(usize, How)> {
        let mut seen = Vec::with_capacity(wish.candidates.len());
        for (at, candidate) in wish.candidates.iter().enumerate() {
            if !wish.excluded.is_empty() && wish.excluded.contains(candidate.node()) {
                continue;
            }
            let standing = self.standings.get(&candidate.key()).copied().unwrap_or_default();
            seen.push(Seen {
                candidate,
                at,
                gate: standing.gate(now),
                load: standing.load(now),
                slowness: standing.slowness(now),
                last_turn: standing.last_turn,
                is_near: candidate.is_in(self.zone.as_deref()),
            });
        }
        choose(&mut seen, wish.class, wish.prefix, draw)
    }

    /// Counts one more in; returns the moment of the trial that it is, if it is one.
    pub(super) fn enter(&mut self, now: Mono, key: u64) -> Option<Mono> {
        if self.standings.len() >= STANDINGS_MAX {
            self.standings.retain(|_, standing| standing.is_telling(now));
        }
        self.turn += 1;
        let standing = self.standings.entry(key).or_default();
        standing.in_flight += 1;
        standing.last_turn = self.turn;
        standing.circuit.enter(now)
    }
}

fn lock(board: &Mutex<Board>) -> std::sync::MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}
