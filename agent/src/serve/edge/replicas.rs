//! Who can answer a request now: the peers of the routing table, and this node's own engine with what it carries.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::id::Term;
use cic_common::name::ClusterName;
use cic_common::time::Mono;

use super::choice::{Candidate, Load};
use super::counts::Flow;
use super::front::{Edge, OwnEngine};

/// An older probe says nothing of the queue: three probes of 2 s.
const QUEUE_FRESH_FOR: Duration = Duration::from_secs(6);

/// Requests that wait in this node's own engine, as last probed.
#[derive(Debug, Default)]
pub(super) struct Queue {
    probed: Mutex<Option<(Mono, u32)>>,
}

impl Queue {
    fn set(&self, now: Mono, waiting: u32) {
        *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, waiting));
    }

    fn waiting(&self, now: Mono) -> Option<u32> {
        let probed = *self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        probed.filter(|(at, _)| now.since(*at) <= QUEUE_FRESH_FOR).map(|(_, waiting)| waiting)
    }
}

/// This node's own engine as a candidate, and what that was drawn from.
#[derive(Debug, Default)]
pub(super) struct OwnCandidate(Mutex<Option<Drawn>>);

#[derive(Debug)]
struct Drawn {
    port: u16,
    model: String,
    table: (Term, u64),
    candidate: Arc<Candidate>,
}

impl Edge {
    /// Says how many requests the own engine had not begun when it was probed.
    pub fn engine_queues(&self, waiting: u32) {
        self.shared.queue.set(self.shared.clock.now(), waiting);
        self.shared.scarcity.admission.probed(waiting.into());
    }

    /// Whether this node's engine takes requests, and none waits for any.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let admits = self.shared.own.borrow().as_ref().is_some_and(|own| own.takes(false));
        let queued = self.own_load().waiting.unwrap_or_default();
        admits && queued == 0 && self.shared.scarcity.waiting() == 0
    }

    /// What this node's engine carries, for its own edge and for peers.
    pub(super) fn own_load(&self) -> Load {
        let waiting = self.shared.queue.waiting(self.shared.clock.now());
        Load { in_flight: self.shared.counts.in_flight(Flow::OwnEngine), waiting }
    }

    /// Who may be asked. A reluctant engine of this node only when all others were.
    pub(super) fn candidates(&self, model: &str, is_last_resort: bool) -> Vec<Arc<Candidate>> {
        let node = &self.shared.spec.node;
        let mut candidates = self.shared.routes.candidates(model).unwrap_or_default();
        candidates.retain(|candidate| candidate.node() != node);
        let own = self.shared.own.borrow();
        if let Some(own) = own.as_ref().filter(|own| own.takes(is_last_resort) && own.model == model) {
            candidates.push(self.own_candidate(own));
            self.shared.choice.loaded(node, self.own_load());
        }
        candidates
    }

    fn own_candidate(&self, own: &OwnEngine) -> Arc<Candidate> {
        let table = self.shared.routes.stamp();
        let mut drawn = self.shared.own_candidate.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same =
            |drawn: &&Drawn| drawn.port == own.port && drawn.table == table && drawn.model == own.model;
        if let Some(drawn) = drawn.as_ref().filter(is_same) {
            return Arc::clone(&drawn.candidate);
        }
        let node = &self.shared.spec.node;
        let routing = self.shared.routes.routing(&own.model, node);
        let cluster = ClusterName::parse_node(node).ok();
        let gpu = cluster.as_ref().and_then(|(cluster, _)| cluster.gpu_model());
        let zone = self.shared.spec.zone.clone();
        let candidate = Arc::new(Candidate::new(self.own(own.port), zone, gpu, &routing));
        let (port, model) = (own.port, own.model.clone());
        *drawn = Some(Drawn { port, model, table, candidate: Arc::clone(&candidate) });
        candidate
    }
}
