//! Why a node is to go, and what must be true before it does.

use cic_common::id::NodeId;
use cic_common::report::Phase;
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

use super::Action;
use super::belief::Belief;
use super::evidence::span;
use super::fleet::Fleet;
use super::node::Node;
use super::open::Open;
use super::operation::OperationKind;
use super::told::notice_text;
use super::trail::Severity;
use super::warning::NoticeWord;

/// The cause, which fixes how the node is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Neither path answers for longer than the partition grace. It may still serve someone.
    Lost,
    /// The cloud says the VM is not there and both paths are silent.
    Gone,
    /// The cloud announced that it will be taken.
    Notice,
    /// It said itself that it cannot heal.
    Failed,
    /// It came to rest in Stopped.
    Stopped,
    /// Launched and never heard of, or never serving, within its grace.
    TooSlow,
    /// Its launch failed for good.
    NotLaunched,
    /// An operator wants another in its place.
    ReplaceAsked,
    /// An operator wants it empty.
    DrainAsked,
    /// More nodes than wanted.
    Surplus,
    /// A VM with our tag and without a row.
    Unowned,
}

/// How a node that is to go may be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    /// Nothing of it can serve: give the VM back now. Where its engine may work all the same, as `DrainAfterReplacement`.
    Now,
    /// It may serve: only once enough others serve.
    AfterReplacement,
    /// It serves: drained once enough others serve, then given back.
    DrainAfterReplacement,
    /// It serves, and a person asked: drained now.
    DrainNow,
    /// It drains itself before its deadline; given back when it has stopped.
    WhenStopped,
}

impl Cause {
    pub(super) fn removal(self) -> Removal {
        match self {
            Self::Gone | Self::Failed | Self::Stopped | Self::TooSlow | Self::NotLaunched | Self::Unowned => {
                Removal::Now
            }
            Self::Lost => Removal::AfterReplacement,
            Self::ReplaceAsked | Self::Surplus => Removal::DrainAfterReplacement,
            Self::DrainAsked => Removal::DrainNow,
            Self::Notice => Removal::WhenStopped,
        }
    }

    /// Whether good news from the node takes the verdict back while nothing of its removal was performed.
    pub(super) fn is_reversible(self) -> bool {
        match self {
            Self::Lost | Self::Gone | Self::Notice | Self::TooSlow | Self::Failed => true,
            Self::Stopped
            | Self::NotLaunched
            | Self::ReplaceAsked
            | Self::DrainAsked
            | Self::Surplus
            | Self::Unowned => false,
        }
    }

    /// Whether a later cause takes its place. That a node cannot heal stays the cause until it heals: should it fall
    /// silent or be given notice meanwhile, it is removed no more slowly for that. What it drains, it finishes.
    pub(super) fn gives_way(self) -> bool {
        match self {
            Self::Lost | Self::Gone | Self::Notice | Self::TooSlow => true,
            Self::Failed
            | Self::Stopped
            | Self::NotLaunched
            | Self::ReplaceAsked
            | Self::DrainAsked
            | Self::Surplus
            | Self::Unowned => false,
        }
    }

    /// Whether it speaks against the deployment itself: another launch may meet the same end.
    pub(super) fn is_launch_failure(self) -> bool {
        match self {
            Self::Failed | Self::TooSlow | Self::NotLaunched => true,
            Self::Lost
            | Self::Gone
            | Self::Notice
            | Self::Stopped
            | Self::ReplaceAsked
            | Self::DrainAsked
            | Self::Surplus
            | Self::Unowned => false,
        }
    }
}

/// The verdict that a node is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    pub(super) cause: Cause,
    pub(super) reason: String,
}

impl Fleet {
    /// Decides whether a node is to go, or takes such a verdict back.
    pub(super) fn judge_leaving(&mut self, now: Mono, id: &NodeId, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get(id) else { return };
        if !node.is_ours() || !self.is_settled {
            return;
        }
        let verdict = self.verdict(now, node);
        match (&node.leaving, verdict) {
            (None, Some(leaving)) => {
                let severity = Severity::Warning;
                let text = format!("is to go: {}", leaving.reason);
                let is_launch_failure = leaving.cause.is_launch_failure();
                self.set_leaving(id, Some(leaving));
                self.tell(now, id, severity, "replace", text, out);
                if is_launch_failure {
                    self.count_launch_failure(now, id, out);
                }
            }
            // A lost node that came back with a notice drains like any other; one that is gone is not waited for.
            (Some(old), Some(new))
                if old.cause.gives_way() && old.cause != new.cause && !self.is_being_terminated(id) =>
            {
                let text = format!("is to go: {}", new.reason);
                self.set_leaving(id, Some(new));
                self.tell(now, id, Severity::Warning, "replace", text, out);
            }
            (Some(old), None) if old.cause.is_reversible() && !self.is_being_removed(id) => {
                let text = format!("stays after all: no longer {}", old.reason);
                self.reprieve(now, id, text, out);
            }
            (None, None) | (Some(_), Some(_) | None) => {}
        }
    }

    fn verdict(&self, now: Mono, node: &Node) -> Option<Leaving> {
        let leaving = |cause, reason: String| Some(Leaving { cause, reason });
        let report = node.report.as_ref();
        let why = || node.why(now, &self.timing);
        if node.belief == Belief::Gone {
            return leaving(Cause::Gone, why());
        }
        if node.belief == Belief::Silent && now.since(node.belief_since) >= self.timing.partition_grace {
            return leaving(
                Cause::Lost,
                format!("silent for {}: {}", span(now.since(node.belief_since)), why()),
            );
        }
        if let Some(notice) = report.and_then(|report| report.notice.as_ref())
            && NoticeWord::of(notice) == NoticeWord::Leaves
        {
            return leaving(Cause::Notice, notice_text(notice));
        }
        if let Some(reason) = report.and_then(|report| report.wants_replacement.as_ref()) {
            return leaving(Cause::Failed, format!("it asks for a replacement: {reason}"));
        }
        if node.phase() == Some(Phase::Stopped) {
            let reason = report.map(|report| report.reason.clone()).unwrap_or_default();
            return leaving(Cause::Stopped, format!("it has stopped: {reason}"));
        }
        let open = node.operation.and_then(|id| self.operations.get(&id));
        let is_launching = open.is_some_and(Open::is_launch);
        let age = now.since(node.known_since);
        if !is_launching && report.is_none() && age >= self.timing.boot_grace {
            return leaving(Cause::TooSlow, format!("no word from it {} after its launch", span(age)));
        }
        if !is_launching && !node.has_served && age >= self.timing.serve_grace {
            return leaving(Cause::TooSlow, format!("not serving {} after its launch", span(age)));
        }
        None
    }

    pub(super) fn set_leaving(&mut self, id: &NodeId, leaving: Option<Leaving>) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.leaving = leaving;
            node.held = None;
            self.is_dirty = true;
        }
    }

    /// Takes the verdict back. The node may have connected while it was to go, and was told nothing to run then; an
    /// assignment that it has changes nothing.
    pub(super) fn reprieve(&mut self, now: Mono, id: &NodeId, why: String, out: &mut Vec<Action>) {
        self.set_leaving(id, None);
        self.disinherit(id, out);
        self.tell(now, id, Severity::Info, "reprieve", why, out);
        self.assign(id, out);
    }

    /// Whether something was done that its agent or its cloud does not take back.
    fn is_being_removed(&self, id: &NodeId) -> bool {
        let Some(node) = self.nodes.get(id) else { return false };
        let open = node.operation.and_then(|operation| self.operations.get(&operation));
        let is_performed = open.is_some_and(|open| match open.operation.kind {
            OperationKind::Terminate | OperationKind::Drain { .. } => open.is_performed,
            OperationKind::Launch { .. } | OperationKind::RestartAgent | OperationKind::RestartBySsh => false,
        });
        is_performed || node.draining_since.is_some()
    }

    pub(super) fn is_being_terminated(&self, id: &NodeId) -> bool {
        let open = self.nodes.get(id).and_then(|node| node.operation).and_then(|op| self.operations.get(&op));
        open.is_some_and(|open| open.is_performed && open.operation.kind == OperationKind::Terminate)
    }
}
