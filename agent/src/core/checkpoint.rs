//! When a checkpoint is written, and what one of a predecessor that is read back means.

use cic_common::assignment::Assignment;
use cic_common::id::NodeId;
use cic_common::report::Role;
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;
use serde::{Deserialize, Serialize};

use super::Action;
use super::agent::{Agent, decided};
use super::bringup::differences;
use super::stage::Stage;

/// Why a checkpoint is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// It is time.
    Periodic,
    /// The cloud says that it will take the node.
    Notice,
    /// The node was drained because of that; its engine is stopped next.
    Leaving,
}

impl Occasion {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Periodic => "periodic",
            Self::Notice => "notice",
            Self::Leaving => "leaving",
        }
    }
}

/// A checkpoint that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub bytes: u64,
    /// Requests in its journal.
    pub request_count: u32,
    pub took_ms: u64,
    /// Stores that did not take it, with the cause.
    pub missed: Vec<String>,
}

/// What a predecessor left, as far as the core weighs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// From the moment it was taken to now, by the two nodes' wall clocks.
    pub age_ms: u64,
    pub took_ms: u64,
    /// `None` of a gateway.
    pub assignment: Option<Assignment>,
    pub model_digest: Option<String>,
    /// Requests that were under way.
    pub unfinished_count: u32,
    /// Those of them that are run again.
    pub rerun_count: u32,
    /// Newer ones that could not be used, with the cause.
    pub skipped: Vec<String>,
}

/// What is known of the node's own checkpoints, and of its predecessor's.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    due_at: Option<Mono>,
    is_failing: bool,
    /// The node in whose place this one stands and whose checkpoint was asked for.
    predecessor: Option<NodeId>,
    /// Read back, and not told yet: the model here is not known.
    untold: Option<Restored>,
}

impl Agent {
    /// When the next checkpoint is due, while there is something to write down.
    pub(super) fn checkpoint_due(&self) -> Option<Mono> {
        self.checkpoints.due_at.filter(|_| self.is_up())
    }

    fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Serving { .. } | Stage::Passing)
    }

    /// Orders the periodic checkpoint: the first once the node serves.
    pub(super) fn checkpoint_in_time(&mut self, now: Mono, out: &mut Vec<Action>) {
        if self.is_up() && self.checkpoints.due_at.is_none_or(|due| now >= due) {
            self.checkpoint(now, Occasion::Periodic, out);
        }
    }

    pub(super) fn checkpoint(&mut self, now: Mono, occasion: Occasion, out: &mut Vec<Action>) {
        self.checkpoints.due_at = Some(now + self.spec.timing.checkpoint);
        let (assignment, model_digest) = (self.assignment.clone(), self.model_digest.clone());
        out.push(Action::Checkpoint { occasion, assignment, model_digest });
    }

    /// Success is told where it ends a row of failures or a notice asked; failure once, and on every notice.
    pub(super) fn checkpointed(
        &mut self,
        occasion: Occasion,
        result: Result<Saved, String>,
        out: &mut Vec<Action>,
    ) {
        let was_failing = self.checkpoints.is_failing;
        let is_asked = occasion != Occasion::Periodic;
        let missed = match &result {
            Ok(saved) => saved.missed.join("; "),
            Err(cause) => cause.clone(),
        };
        self.checkpoints.is_failing = !missed.is_empty();
        if !missed.is_empty() && (is_asked || !was_failing) {
            out.push(Action::Tell(NodeEvent::CheckpointFailed {
                occasion: occasion.as_str().to_owned(),
                cause: missed,
                is_lost: result.is_err(),
            }));
        }
        if let Ok(Saved { bytes, request_count, took_ms, missed }) = result
            && (is_asked || (was_failing && missed.is_empty()))
        {
            let occasion = occasion.as_str().to_owned();
            out.push(Action::Tell(NodeEvent::CheckpointSaved { occasion, bytes, request_count, took_ms }));
        }
    }

    /// Reads back, once, what the node left in whose place this one stands.
    pub(super) fn takes_place_of(&mut self, predecessor: NodeId, out: &mut Vec<Action>) {
        if self.spec.role == Role::Gateway || self.checkpoints.predecessor.as_ref() == Some(&predecessor) {
            return;
        }
        self.checkpoints.predecessor = Some(predecessor.clone());
        out.push(Action::Restore { from: predecessor });
    }

    /// An earlier run of this agent has done so.
    pub(super) fn has_taken_place_of(&mut self, predecessor: Option<NodeId>) {
        self.checkpoints.predecessor = predecessor;
    }

    pub(super) fn restored(&mut self, from: NodeId, result: Result<Restored, String>, out: &mut Vec<Action>) {
        if self.checkpoints.predecessor.as_ref() != Some(&from) {
            return;
        }
        match result {
            Ok(restored) => {
                self.checkpoints.untold = Some(restored);
                self.tell_restored(out);
            }
            Err(cause) => out.push(Action::Tell(NodeEvent::RestoreFailed { from, cause })),
        }
    }

    pub(super) fn model_known(&mut self, digest: String, out: &mut Vec<Action>) {
        self.model_digest = Some(digest);
        self.tell_restored(out);
    }

    /// Says what was restored once it is known whether the model is the same.
    fn tell_restored(&mut self, out: &mut Vec<Action>) {
        let is_comparable = |restored: &mut Restored| {
            restored.model_digest.is_none() || self.model_digest.is_some() || self.assignment.is_none()
        };
        let Some(restored) = self.checkpoints.untold.take_if(is_comparable) else { return };
        let Some(from) = self.checkpoints.predecessor.clone() else { return };
        let mut differs = Vec::new();
        if let (Some(was), Some(is)) = (&restored.assignment, &self.assignment) {
            differs.extend(differences(was, is).into_iter().map(|part| format!("it ran {part}")));
        }
        if let (Some(was), Some(is)) = (&restored.model_digest, &self.model_digest)
            && was != is
        {
            differs.push(format!("the model's files are others: {was} there, {is} here"));
        }
        if !differs.is_empty() {
            decided(out, "serve all the same", &differs.join("; "));
        }
        let Restored { age_ms, took_ms, unfinished_count, rerun_count, skipped, .. } = restored;
        out.push(Action::Tell(NodeEvent::Restored {
            from,
            age_ms,
            took_ms,
            unfinished_count,
            rerun_count,
            differs,
            skipped,
        }));
    }
}
