//! Whether this controller leads, for parts that only a leader's work is for.

use std::sync::Arc;

use cic_common::id::Term;

use crate::core::{EventRecord, Severity};
use crate::store::StoreQueue;

/// What only a leader has.
#[derive(Debug, Clone)]
pub struct Reign {
    pub term: Term,
    pub queue: StoreQueue,
    /// Another controller would take the lead.
    pub has_standby: bool,
}

/// Asked before each act. Clones share the answer's source.
#[derive(Clone)]
pub struct Standing(Arc<dyn Fn() -> Option<Reign> + Send + Sync>);

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Standing").field(&self.reign()).finish()
    }
}

impl Standing {
    pub fn new(reign: impl Fn() -> Option<Reign> + Send + Sync + 'static) -> Self {
        Self(Arc::new(reign))
    }

    /// None while another leads, or nobody.
    #[must_use]
    pub fn reign(&self) -> Option<Reign> {
        (self.0)()
    }

    /// Appends to the event log, of a leader; others only have their own log.
    pub fn note(&self, severity: Severity, kind: &str, text: String) {
        match severity {
            Severity::Info => tracing::info!(kind, text, "control plane"),
            Severity::Warning => tracing::warn!(kind, text, "control plane"),
            Severity::Alert => tracing::error!(kind, text, "control plane"),
        }
        if let Some(reign) = self.reign() {
            reign.queue.push_event(EventRecord { node: None, severity, kind: kind.to_owned(), text });
        }
    }
}
