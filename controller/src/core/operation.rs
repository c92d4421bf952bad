//! Acts towards the outside, recorded before they are performed.

use cic_common::id::{DeploymentName, NodeId, OperationId, Term};
use serde::{Deserialize, Serialize};

use super::price::UsdPerHour;

/// The deadline of an operation that was stored before there were any.
const DEADLINE_MS_OF_OLD: u64 = 600_000;

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
    /// The same through its host's sshd, where the agent itself does not hear.
    RestartBySsh,
}

impl OperationKind {
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Launch { .. } => "launch",
            Self::Terminate => "terminate",
            Self::Drain { .. } => "drain",
            Self::RestartAgent => "restart-agent",
            Self::RestartBySsh => "restart-by-ssh",
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
    /// How long it may stay open, from the moment at which the controller that performs it heard that it is recorded,
    /// or restored it: no clock of another process or of the store is compared, so each controller gives it this span
    /// anew, however long none was there. A launch is given up then; of anything else an alert tells, and it goes on.
    #[serde(default = "deadline_ms_of_old")]
    pub deadline_ms: u64,
    /// The most that the VM of a launch may cost. A provider that knows prices refuses a dearer one.
    #[serde(default)]
    pub price_limit_usd_per_hour: Option<UsdPerHour>,
}

fn deadline_ms_of_old() -> u64 {
    DEADLINE_MS_OF_OLD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_stored_before_there_were_deadlines_has_the_usual_one_and_no_price_limit() {
        let stored = r#"{"id":7,"term":1,"node":"a","kind":"terminate","state":"recorded","reason":"r"}"#;
        let loaded: Operation = serde_json::from_str(stored).unwrap();
        assert_eq!((loaded.deadline_ms, loaded.price_limit_usd_per_hour), (600_000, None));
    }
}
