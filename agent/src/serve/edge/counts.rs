//! What passes through the edge, counted exactly: a guard lives as long as the body it stands for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::journal::Line;
use super::scarcity::Slot;

/// Counters of one edge. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    users: AtomicU32,
    own_engine: AtomicU32,
    requests: AtomicU64,
    own_requests: AtomicU64,
    retries: AtomicU64,
    failures: AtomicU64,
    cuts: AtomicU64,
    continuations: AtomicU64,
    continuation_ms: AtomicU64,
    continuation_ms_max: AtomicU64,
}

/// What became of streams that were cut.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CutStreams {
    pub cut_count: u64,
    /// Taken up by another replica.
    pub continued_count: u64,
    /// From the cut to the next replica's first event, of all of them together.
    pub waited_ms: u64,
    pub waited_ms_max: u64,
}

/// Which requests a guard counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Requests of users, wherever they are answered.
    Users,
    /// Requests at this node's own engine, from users and peers.
    OwnEngine,
}

/// Counted in while alive.
#[derive(Debug)]
pub(super) struct InFlight {
    counts: Counts,
    flow: Flow,
    /// Its place at the own engine, given up with it.
    slot: Option<Slot>,
    line: Option<Line>,
}

impl Counts {
    pub(super) fn enter(&self, flow: Flow) -> InFlight {
        self.of(flow).fetch_add(1, Ordering::Relaxed);
        if flow == Flow::OwnEngine {
            self.shared.own_requests.fetch_add(1, Ordering::Relaxed);
        }
        InFlight { counts: self.clone(), flow, slot: None, line: None }
    }

    pub(super) fn in_flight(&self, flow: Flow) -> u32 {
        self.of(flow).load(Ordering::Relaxed)
    }

    /// What must end before this node may go: requests at its engine and users it answers, whichever are more. A
    /// user's request to the own engine is both, so the two do not add up.
    pub(super) fn carried(&self) -> u32 {
        self.in_flight(Flow::OwnEngine).max(self.in_flight(Flow::Users))
    }

    pub(super) fn request(&self) {
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn retry(&self) {
        self.shared.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failure(&self) {
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn cut(&self) {
        self.shared.cuts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn continued(&self, after: Duration) {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.shared.continuations.fetch_add(1, Ordering::Relaxed);
        self.shared.continuation_ms.fetch_add(ms, Ordering::Relaxed);
        self.shared.continuation_ms_max.fetch_max(ms, Ordering::Relaxed);
    }

    pub(super) fn cut_streams(&self) -> CutStreams {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CutStreams {
            cut_count: read(&self.shared.cuts),
            continued_count: read(&self.shared.continuations),
            waited_ms: read(&self.shared.continuation_ms),
            waited_ms_max: read(&self.shared.continuation_ms_max),
        }
    }

    /// Requests of users and at the own engine that ever came; a user's at the own engine is both.
    pub(super) fn served(&self) -> u64 {
        self.requests() + self.shared.own_requests.load(Ordering::Relaxed)
    }

    pub(super) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    pub(super) fn retries(&self) -> u64 {
        self.shared.retries.load(Ordering::Relaxed)
    }

    pub(super) fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    fn of(&self, flow: Flow) -> &AtomicU32 {
        match flow {
            Flow::Users => &self.shared.users,
            Flow::OwnEngine => &self.shared.own_engine,
        }
    }
}

impl InFlight {
    /// The same, with its place at the own engine.
    pub(super) fn holding(mut self, slot: Slot) -> Self {
        self.slot = Some(slot);
        self
    }

    /// The same, with its line in the journal.
    pub(super) fn noted(mut self, line: Option<Line>) -> Self {
        self.line = line;
        self
    }

    /// Notes what its client has had of a stream, more than before.
    pub(super) fn has_emitted(&self, tokens: &[u32]) {
        if let Some(line) = &self.line {
            line.has_emitted(tokens);
        }
    }

    /// Notes what its client has had of a stream, whatever was noted before.
    pub(super) fn has_emitted_only(&self, tokens: &[u32]) {
        if let Some(line) = &self.line {
            line.has_emitted_only(tokens);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counts.of(self.flow).fetch_sub(1, Ordering::Relaxed);
    }
}
