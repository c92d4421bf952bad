//! When a checkpoint is written, and what one of a predecessor that is read back means.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::assignment::Assignment;
use cic_common::id::NodeId;
use cic_common::report::Role;
use cic_common::time::Mono;
use cic_common::wire::message::NodeEvent;
use serde::{Deserialize, Serialize};

use super::Action;
use super::agent::{Agent, decided};
use super::bringup::differences;
use super::stage::{After, Stage};

/// The engine's stop waits so long for the last checkpoint, and no longer than a quarter of what is left to the deadline: a
/// write takes a tenth of a second.
const WRITE_MAX: Duration = Duration::from_secs(2);

const WRITE_SHARE: u32 = 4;

/// What follows a flag whose name has one of these words may be a secret: `--api-key`, `--hf-token`.
const SECRET_WORDS: [&str; 5] = ["key", "token", "secret", "password", "credential"];

/// Predecessors of one node whose checkpoints are read at once.
const PREDECESSORS_MAX: usize = 64;

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
    pub occasion: Occasion,
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
    /// Those of them that are run again; none before the last checkpoint is there.
    pub rerun_count: u32,
    /// Newer ones that could not be used, with the cause.
    pub skipped: Vec<String>,
    /// Its node writes no other.
    pub is_last: bool,
}

/// What the files of the running assignment's model are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KnownModel {
    /// They are being looked at, or will be.
    Pending,
    Digest(String),
    /// Why it is not known.
    Unknown(String),
}

/// The node's word in the place of a predecessor.
#[derive(Debug)]
struct Succession {
    is_gone: bool,
    is_done: bool,
    /// Read back, and not told yet: the model here is not known.
    untold: Option<Restored>,
}

/// What is known of the node's own checkpoints, and of its predecessors'.
#[derive(Debug)]
pub(super) struct Checkpoints {
    due_at: Option<Mono>,
    is_writing: bool,
    is_failing: bool,
    model: KnownModel,
    predecessors: BTreeMap<NodeId, Succession>,
}

impl Checkpoints {
    pub(super) fn new() -> Self {
        Self {
            due_at: None,
            is_writing: false,
            is_failing: false,
            model: KnownModel::Pending,
            predecessors: BTreeMap::new(),
        }
    }
}

/// How far the last checkpoint of a node that leaves is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastWord {
    ToBeWritten,
    /// It is being written; the node goes on at this moment whatever comes of it.
    Until(Mono),
    Done,
}

impl Agent {
    /// When the next checkpoint is due, while there is something to write down.
    pub(super) fn checkpoint_due(&self) -> Option<Mono> {
        self.checkpoints.due_at.filter(|_| self.may_checkpoint() && !self.checkpoints.is_writing)
    }

    /// From the first time that it serves to its leaving: the edge of a node whose engine fails has users all the same.
    fn may_checkpoint(&self) -> bool {
        let is_up = matches!(self.stage, Stage::Serving { .. } | Stage::Passing);
        let was_up = self.checkpoints.due_at.is_some() && !self.stage.is_leaving();
        self.spec.has_store && (is_up || was_up)
    }

    /// Orders the periodic checkpoint, the first once the node serves; one at a time.
    pub(super) fn checkpoint_in_time(&mut self, now: Mono, out: &mut Vec<Action>) {
        let is_due = self.checkpoints.due_at.is_none_or(|due| now >= due);
        if is_due && self.may_checkpoint() && !self.checkpoints.is_writing {
            self.checkpoint(now, Occasion::Periodic, out);
        }
    }

    pub(super) fn checkpoint(&mut self, now: Mono, occasion: Occasion, out: &mut Vec<Action>) {
        if !self.spec.has_store {
            return;
        }
        self.checkpoints.due_at = Some(now + self.spec.timing.checkpoint);
        self.checkpoints.is_writing = true;
        let model_digest = match &self.checkpoints.model {
            KnownModel::Digest(digest) => Some(digest.clone()),
            KnownModel::Pending | KnownModel::Unknown(_) => None,
        };
        let assignment = self.assignment.as_ref().map(without_secrets);
        out.push(Action::Checkpoint { occasion, assignment, model_digest });
    }

    /// Orders the last one of a node that leaves for good. Tells whether the node has to wait for it.
    pub(super) fn last_word(
        &mut self,
        now: Mono,
        word: LastWord,
        then: After,
        out: &mut Vec<Action>,
    ) -> LastWord {
        let leave = self.notices.due(now);
        let is_end = leave.is_some() || matches!(then, After::Rest | After::Leave);
        if !self.spec.has_store || !is_end {
            return LastWord::Done;
        }
        match word {
            LastWord::ToBeWritten => {
                self.checkpoint(now, Occasion::Leaving, out);
                let share = leave.map(|leave| leave.deadline.since(now) / WRITE_SHARE);
                LastWord::Until(now + share.map_or(WRITE_MAX, |share| share.min(WRITE_MAX)))
            }
            LastWord::Until(until) if now < until => word,
            LastWord::Until(_) | LastWord::Done => LastWord::Done,
        }
    }

    /// Success is told where it ends a row of failures or a notice asked; failure once, and on every notice.
    pub(super) fn checkpointed(
        &mut self,
        occasion: Occasion,
        result: Result<Saved, String>,
        out: &mut Vec<Action>,
    ) {
        self.checkpoints.is_writing = false;
        // Not that of a drain before, whose notice was lifted.
        if let Stage::Draining { last_word, .. } = &mut self.stage
            && matches!(last_word, LastWord::Until(_))
            && occasion == Occasion::Leaving
        {
            *last_word = LastWord::Done;
        }
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
        if let Ok(Saved { bytes, request_count, took_ms, missed, .. }) = result
            && (is_asked || (was_failing && missed.is_empty()))
        {
            let occasion = occasion.as_str().to_owned();
            out.push(Action::Tell(NodeEvent::CheckpointSaved { occasion, bytes, request_count, took_ms }));
        }
    }

    /// Reads back what the node left in whose place this one stands, once; and hears that it will leave no more.
    pub(super) fn takes_place_of(&mut self, predecessor: NodeId, is_gone: bool, out: &mut Vec<Action>) {
        if !self.spec.has_store || self.spec.role == Role::Gateway {
            return;
        }
        let predecessors = &mut self.checkpoints.predecessors;
        let has_room = predecessors.len() < PREDECESSORS_MAX;
        let is_news = match predecessors.get_mut(&predecessor) {
            Some(known) => is_gone && !std::mem::replace(&mut known.is_gone, true),
            None if has_room => {
                predecessors
                    .insert(predecessor.clone(), Succession { is_gone, is_done: false, untold: None });
                true
            }
            None => {
                let cause = format!("it reads what {PREDECESSORS_MAX} others left");
                return out.push(Action::Tell(NodeEvent::RestoreFailed { from: predecessor, cause }));
            }
        };
        if is_news {
            out.push(Action::Restore { from: predecessor, is_gone });
        }
    }

    pub(super) fn restored(&mut self, from: NodeId, result: Result<Restored, String>, out: &mut Vec<Action>) {
        let Some(succession) = self.checkpoints.predecessors.get_mut(&from) else { return };
        match result {
            Ok(restored) => {
                succession.untold = Some(restored);
                self.tell_restored(out);
            }
            Err(cause) => {
                self.checkpoints.predecessors.remove(&from);
                out.push(Action::Tell(NodeEvent::RestoreFailed { from, cause }));
            }
        }
    }

    /// What is known of the model belongs to an engine, which ends.
    pub(super) fn forget_model(&mut self) {
        self.checkpoints.model = KnownModel::Pending;
    }

    /// A run before this one started the engine on files of this digest.
    pub(super) fn remember_model(&mut self, digest: Option<String>) {
        let unknown = || KnownModel::Unknown("its engine was found running".to_owned());
        self.checkpoints.model = digest.map_or_else(unknown, KnownModel::Digest);
    }

    pub(super) fn model_known(
        &mut self,
        attempt: u32,
        result: Result<String, String>,
        out: &mut Vec<Action>,
    ) {
        if attempt != self.attempt {
            return;
        }
        self.checkpoints.model = match result {
            Ok(digest) => KnownModel::Digest(digest),
            Err(cause) => KnownModel::Unknown(cause),
        };
        self.tell_restored(out);
    }

    /// Says what was restored once it is known whether the model is the same.
    fn tell_restored(&mut self, out: &mut Vec<Action>) {
        let here = self.assignment.as_ref().map(without_secrets);
        if here.is_some() && self.checkpoints.model == KnownModel::Pending {
            return;
        }
        for (from, succession) in &mut self.checkpoints.predecessors {
            let Some(restored) = succession.untold.take() else { continue };
            succession.is_done |= restored.is_last;
            let Restored { assignment, model_digest, skipped, .. } = &restored;
            let mut differs = Vec::new();
            if let (Some(was), Some(is)) = (assignment, &here) {
                differs.extend(differences(was, is).into_iter().map(|part| format!("it ran {part}")));
            }
            differs.extend(model_differs(model_digest.as_deref(), &self.checkpoints.model));
            if !differs.is_empty() {
                decided(out, "serve all the same", &differs.join("; "));
            }
            out.push(Action::Tell(NodeEvent::Restored {
                from: from.clone(),
                age_ms: restored.age_ms,
                took_ms: restored.took_ms,
                unfinished_count: restored.unfinished_count,
                rerun_count: restored.rerun_count,
                differs,
                skipped: skipped.clone(),
                is_last: restored.is_last,
            }));
        }
        // Told of one again, it is another end of it.
        self.checkpoints.predecessors.retain(|_, succession| !succession.is_done);
    }
}

fn model_differs(was: Option<&str>, is: &KnownModel) -> Option<String> {
    match (was, is) {
        (Some(was), KnownModel::Digest(is)) if was == is => None,
        (Some(was), KnownModel::Digest(is)) => {
            Some(format!("the model's files are others: {was} there, {is} here"))
        }
        (None, _) => Some("it did not say what its model's files were".to_owned()),
        (_, KnownModel::Unknown(cause)) => {
            Some(format!("what the model's files are here is not known: {cause}"))
        }
        (_, KnownModel::Pending) => Some("there is no model here".to_owned()),
    }
}

/// The same without what may be secret: values of the environment, and of flags that are named so.
fn without_secrets(assignment: &Assignment) -> Assignment {
    let mut assignment = assignment.clone();
    assignment.engine.env.values_mut().for_each(String::clear);
    let is_secret = |flag: &str| {
        let mut words = flag.split(['-', '_']);
        flag.starts_with('-') && words.any(|word| SECRET_WORDS.contains(&word))
    };
    let mut is_value = false;
    for arg in &mut assignment.engine.args {
        match arg.split_once('=') {
            Some((flag, _)) if is_secret(flag) => *arg = format!("{flag}=…"),
            _ if is_value && !arg.starts_with("--") => *arg = "…".to_owned(),
            _ => {}
        }
        is_value = is_secret(arg) && !arg.contains('=') || (is_value && !arg.starts_with("--"));
    }
    assignment
}
