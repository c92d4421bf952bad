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
    /// `None` of a gateway. The values of its environment are left out: they may be secrets.
    pub assignment: Option<Assignment>,
    /// Names the weights; they are not copied.
    pub model_digest: Option<String>,
    /// Requests of users that this node's edge held.
    pub requests: Vec<Unfinished>,
    /// The page of `/metrics`.
    pub metrics: String,
}

/// The same without what may be secret.
pub(super) fn without_values(mut assignment: Assignment) -> Assignment {
    assignment.engine.env.values_mut().for_each(String::clear);
    assignment
}
