//! Why a node is to go, and what must be true before it does.

use serde::{Deserialize, Serialize};

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
