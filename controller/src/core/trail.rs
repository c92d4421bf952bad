//! The event log's entries: every decision with what it rests on.

use std::collections::VecDeque;

use cic_common::id::NodeId;
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

/// Entries kept in memory for each node, for `cic why`. Sixty-four cover a node's last incident in full; the
/// store holds the rest.
pub const TRAIL_ENTRIES_MAX: usize = 64;

/// Who should look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    /// A person must act.
    Alert,
}

/// One entry of the event log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    pub node: Option<NodeId>,
    pub severity: Severity,
    /// Constant and short: `belief`, `route-out`, `launch`, `brake`.
    pub kind: String,
    /// The facts, for people.
    pub text: String,
}

/// A bounded memory of what was seen and concluded about one node, oldest first.
#[derive(Debug, Default, Clone)]
pub(super) struct Trail {
    entries: VecDeque<(Mono, String)>,
}

impl Trail {
    pub(super) fn push(&mut self, now: Mono, text: String) {
        if self.entries.len() == TRAIL_ENTRIES_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back((now, text));
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (Mono, &str)> {
        self.entries.iter().map(|(at, text)| (*at, text.as_str()))
    }
}
