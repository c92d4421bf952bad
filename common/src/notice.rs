//! The cloud's word that a node will be taken, in one form for every cloud.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What will happen to the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    Terminate,
    Stop,
    Hibernate,
    /// Advice that a notice is likely; a spare is worth ordering, draining is not.
    Rebalance,
    Maintenance,
    Freeze,
    Reboot,
    Redeploy,
}

impl NoticeKind {
    /// Whether the node stops serving at the deadline, so that it must be drained and replaced.
    #[must_use]
    pub fn takes_the_node(self) -> bool {
        match self {
            Self::Terminate | Self::Stop | Self::Hibernate | Self::Reboot | Self::Redeploy => true,
            Self::Rebalance | Self::Maintenance | Self::Freeze => false,
        }
    }
}

impl fmt::Display for NoticeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
            Self::Rebalance => "rebalance",
            Self::Maintenance => "maintenance",
            Self::Freeze => "freeze",
            Self::Reboot => "reboot",
            Self::Redeploy => "redeploy",
        })
    }
}

/// A notice as it travels: its deadline counts from the moment of sending, since clocks of two machines are
/// never compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub kind: NoticeKind,
    /// Who said it: `file`, `sigterm`, later the clouds' names.
    pub source: String,
    /// The source's own id of the notice, so that one notice read twice stays one.
    pub id: String,
    /// Milliseconds left when this was sent.
    pub left_ms: u64,
}
