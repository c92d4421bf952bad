//! Acts towards the outside, recorded before they are performed.

use cic_common::id::{DeploymentName, NodeId, OperationId, Term};
use serde::{Deserialize, Serialize};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Launch the VM of `node`; `replaces` is the node whose place it takes.
    Launch { deployment: DeploymentName, replaces: Option<NodeId> },
    /// Give the VM back for good.
    Terminate,
    /// Tell the agent to finish and stop.
    Drain { within_ms: u64 },
    /// Tell the agent to start anew; the engine stays.
    RestartAgent,
}

impl OperationKind {
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Launch { .. } => "launch",
            Self::Terminate => "terminate",
            Self::Drain { .. } => "drain",
            Self::RestartAgent => "restart-agent",
        }
    }
}

/// How far it has come. `Intended -> Recorded -> Done | Failed`.
///
/// Nothing is performed before `Recorded`. After a crash a `Recorded` operation is performed again under its id,
/// which the provider looks up before it acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    Intended,
    Recorded,
    Done,
    Failed { reason: String },
}

impl OperationState {
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Recorded => "recorded",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
        }
    }

    #[must_use]
    pub fn is_open(&self) -> bool {
        match self {
            Self::Intended | Self::Recorded => true,
            Self::Done | Self::Failed { .. } => false,
        }
    }
}

/// One act, with the id that makes repeating it harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    pub term: Term,
    pub node: NodeId,
    pub kind: OperationKind,
    pub state: OperationState,
    /// Why it was decided, for people.
    pub reason: String,
}
