//! What a checkpoint holds.

use cic_common::assignment::Assignment;
use cic_common::id::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use crate::core::Occasion;
use crate::serve::edge::Unfinished;

/// What another node would go on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// By this node's wall clock.
    pub taken_at_ms: u64,
    pub occasion: Occasion,
    /// After which the next one is due: a node that is silent for longer writes no more.
    pub every_ms: u64,
    /// `None` of a gateway. What may be a secret is left out.
    pub assignment: Option<Assignment>,
    /// Names the weights; they are not copied.
    pub model_digest: Option<String>,
    /// Requests of users that this node's edge held.
    pub requests: Vec<Unfinished>,
    /// The page of `/metrics`.
    pub metrics: String,
}
