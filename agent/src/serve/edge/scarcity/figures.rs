//! What scarcity did to requests, counted for scrapes.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cic_common::route::Class;

/// Counters of one edge. Clones share them.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Figures {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    shed: [AtomicU64; Class::ALL.len()],
    refused: [AtomicU64; Class::ALL.len()],
    waited: AtomicU64,
    turned_away: AtomicU64,
    denied: AtomicU64,
    missing: AtomicU64,
}

impl Figures {
    /// A user was told that every replica is full.
    pub(in super::super) fn shed(&self, class: Class) {
        add(&self.shared.shed[index(class)]);
    }

    /// A peer was told that the own engine is full.
    pub(in super::super) fn refused(&self, class: Class) {
        add(&self.shared.refused[index(class)]);
    }

    /// A request began to wait for a replica.
    pub(in super::super) fn waited(&self) {
        add(&self.shared.waited);
    }

    /// A request found no seat to wait in.
    pub(in super::super) fn turned_away(&self) {
        add(&self.shared.turned_away);
    }

    /// A retry that the budget did not pay.
    pub(in super::super) fn denied(&self) {
        add(&self.shared.denied);
    }

    /// The controllers were told that replicas are missing.
    pub(in super::super) fn missing(&self) {
        add(&self.shared.missing);
    }

    /// Requests of users that were told that every replica is full.
    pub(in super::super) fn shed_count(&self) -> u64 {
        self.shared.shed.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Prometheus's text format.
    pub(super) fn write(&self, text: &mut String) {
        let of = |counts: &[AtomicU64], class| counts[index(class)].load(Ordering::Relaxed);
        for class in Class::ALL {
            let (name, shed, refused) =
                (class.as_str(), of(&self.shared.shed, class), of(&self.shared.refused, class));
            let _ = writeln!(text, "cic_agent_edge_shed_requests_total{{class=\"{name}\"}} {shed}");
            let _ =
                writeln!(text, "cic_agent_edge_refused_peer_requests_total{{class=\"{name}\"}} {refused}");
        }
        for (name, count) in [
            ("cic_agent_edge_waited_requests_total", &self.shared.waited),
            ("cic_agent_edge_turned_away_requests_total", &self.shared.turned_away),
            ("cic_agent_edge_denied_retries_total", &self.shared.denied),
            ("cic_agent_edge_missing_replicas_told_total", &self.shared.missing),
        ] {
            let _ = writeln!(text, "{name} {}", count.load(Ordering::Relaxed));
        }
    }
}

fn index(class: Class) -> usize {
    class as usize
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
