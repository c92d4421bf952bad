//! What an agent does about what happened.

use cic_common::assignment::{Assignment, ModelSpec};
use cic_common::id::Term;
use cic_common::wire::message::NodeEvent;
use serde::{Deserialize, Serialize};

/// What the edge does with a request for this node's own engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeMode {
    Admit,
    /// New requests are refused with 503 and this reason, so that the sender tries another replica.
    Refuse {
        reason: String,
    },
    /// Like `Refuse`; requests already admitted go on.
    Drain {
        reason: String,
    },
}

/// One act for a shell to perform. Results come back as events carrying the same `attempt` or `pid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make the current report known to every controller now.
    Heartbeat,
    /// Tell every controller, repeated until acknowledged.
    Tell(NodeEvent),
    /// Write the assignment to the state directory.
    Remember {
        term: Term,
        assignment: Assignment,
    },
    MountModel {
        attempt: u32,
        model: ModelSpec,
    },
    VerifyModel {
        attempt: u32,
        model: ModelSpec,
    },
    StartEngine {
        attempt: u32,
        assignment: Assignment,
    },
    /// `/health`, `/v1/models` names the model, and with `deep` one 1-token completion.
    ProbeEngine {
        pid: u32,
        model: String,
        deep: bool,
    },
    /// SIGTERM now, SIGKILL to the whole session after `grace_ms`; ends in `EngineExited`.
    StopEngine {
        pid: u32,
        grace_ms: u64,
    },
    SetEdge(EdgeMode),
    /// End the process with this code, links closed in order.
    Exit {
        code: u8,
        reason: String,
    },
    /// For the log: a decision, with what it rests on.
    Decided {
        what: String,
        why: String,
    },
}
