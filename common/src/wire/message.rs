//! Messages of wire version 1.
//!
//! The order of variants and fields is the format. A change to any of them needs a new version beside this one
//! (docs/decisions/0003-wire-versions.md); the golden bytes in `golden/v1.txt` guard it.

use serde::{Deserialize, Serialize};

use crate::assignment::{Assignment, Predecessor};
use crate::gpu::{GpuAction, XidSeen};
use crate::id::{ControllerId, Incarnation, NodeId, OperationId, Term};
use crate::notice::Notice;
use crate::report::{NodeReport, Phase, Role};
use crate::route::{Edition, RoutingChanges, RoutingTable};

/// First message of an agent on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub role: Role,
    /// `host:port` where the agent's mTLS port can be reached.
    pub address: String,
    /// The agent's version, for people.
    pub version: String,
    /// It has an object store for checkpoints.
    pub keeps_checkpoints: bool,
    /// The newest table that the node has of this controller; changes from it are enough then.
    pub routes: Option<Edition>,
    pub report: NodeReport,
}

/// First answer of a controller. The routing table follows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    pub controller: ControllerId,
    pub term: Term,
    pub assignment: Option<Assignment>,
    /// Nodes in whose place this one stands, and whose checkpoints it has not read to the last.
    pub predecessors: Vec<Predecessor>,
    pub heartbeat_ms: u32,
}

/// Something a node must tell reliably: repeated until acknowledged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeEvent {
    PhaseChanged {
        from: Phase,
        to: Phase,
        reason: String,
    },
    EngineExited {
        pid: Option<u32>,
        how: String,
    },
    NoticeSeen {
        notice: Notice,
    },
    /// The node cannot heal itself.
    ReplacementWanted {
        reason: String,
    },
    /// The node leaves of its own will, or because it was told to; nothing more will come.
    Farewell {
        reason: String,
    },
    /// A command was carried out or refused.
    CommandDone {
        operation: OperationId,
        outcome: CommandOutcome,
    },
    /// A fault of a GPU was seen in the driver's events or in the kernel's log.
    Xid {
        seen: XidSeen,
        action: GpuAction,
    },
    /// The verdict on the node's GPUs changed, to this.
    GpuChanged {
        text: String,
    },
    /// The engine has work and none of it moves, or it moves again.
    EngineStalled {
        pid: u32,
        /// How long nothing has moved.
        for_ms: u64,
        is_over: bool,
    },
    /// Users ask this node's edge for a model and no replica of it can be reached. Repeated while that lasts.
    ReplicasMissing {
        model: String,
    },
    /// The cloud took a notice back, or what it announced is over.
    NoticeLifted {
        source: String,
        id: String,
    },
    /// A source of notices cannot be read.
    SpotBlind {
        source: String,
        cause: String,
    },
    /// It can be read again.
    SpotSeen {
        source: String,
    },
    /// What another node would go on with is in every object store of this one.
    CheckpointSaved {
        /// `periodic`, `notice`, `leaving`.
        occasion: String,
        bytes: u64,
        /// Requests under way.
        request_count: u32,
        took_ms: u64,
    },
    CheckpointFailed {
        occasion: String,
        cause: String,
        /// No store took it.
        is_lost: bool,
    },
    /// The node has read what its predecessor left.
    Restored {
        from: NodeId,
        /// Since it was written, by the two nodes' clocks.
        age_ms: u64,
        took_ms: u64,
        /// Requests that were under way.
        unfinished_count: u32,
        /// Those of them that are run again.
        rerun_count: u32,
        /// How what is served here is not what was served there.
        differs: Vec<String>,
        /// Newer checkpoints that could not be used, with the cause.
        skipped: Vec<String>,
        /// The predecessor writes no other: this is done.
        is_last: bool,
    },
    RestoreFailed {
        from: NodeId,
        cause: String,
    },
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandOutcome {
    Accepted,
    /// The command came from a term that is over.
    RefusedTerm {
        newest: Term,
    },
}

/// What the leader may ask of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Take no new requests, let running ones finish within `within_ms`, then stop the engine.
    Drain { within_ms: u64, reason: String },
    /// End the agent process; its init system starts it again and it adopts the engine.
    RestartAgent { reason: String },
}

/// Agent to controller, on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    Hello(Hello),
    Event {
        seq: u64,
        event: NodeEvent,
    },
    /// Ask for a certificate with a new key; the DER of a certificate signing request.
    Renew {
        csr_der: Vec<u8>,
    },
}

/// Controller to agent, on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControllerMessage {
    Welcome(Welcome),
    Ack {
        seq: u64,
    },
    Assign {
        term: Term,
        assignment: Assignment,
        predecessors: Vec<Predecessor>,
    },
    Routes {
        table: RoutingTable,
    },
    Command {
        operation: OperationId,
        term: Term,
        command: Command,
    },
    /// Send a heartbeat carrying this number at once.
    Challenge {
        number: u64,
    },
    /// Answer to `Renew`: PEM of the certificate chain, leaf first.
    Certificate {
        chain_pem: String,
    },
    /// Why the connection ends; nothing follows.
    Refused {
        reason: String,
    },
    /// What differs from the table that this controller sent before.
    RouteChanges(RoutingChanges),
}

/// First and only message of an agent that has no certificate yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    pub token: String,
    pub node: NodeId,
    pub csr_der: Vec<u8>,
}

/// Answer to an [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolAnswer {
    Enrolled { chain_pem: String },
    Refused { reason: String },
}
