//! What a provider says of its VMs: the third witness.

use cic_common::id::{FleetName, NodeId, OperationId};
use serde::{Deserialize, Serialize};

/// A VM's state in its provider's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Started or starting; it costs money.
    Running,
    /// There and not running.
    Stopped,
}

/// One VM that carries the tag of a fleet, ours or another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Whose it is, from its tag. Those of others are counted and never touched.
    pub fleet: FleetName,
    pub node: NodeId,
    /// The launch that made it, from its tag.
    pub operation: OperationId,
    pub state: InstanceState,
}

/// Why a provider did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum CloudFault {
    /// It may or may not have happened: ask again with the same id.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// It did not happen and will not by repeating soon: quota, stock.
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// It will never happen: the request itself is wrong.
    #[error("refused: {0}")]
    Refused(String),
}
