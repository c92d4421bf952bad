//! What can happen to a fleet.

use std::time::Duration;

use cic_common::assignment::Predecessor;
use cic_common::id::{DeploymentName, Incarnation, NodeId, OperationId, Term};
use cic_common::report::{Heartbeat, Role};
use cic_common::wire::message::{CommandOutcome, Hello, NodeEvent};
use serde::{Deserialize, Serialize};

use super::deployment::Deployment;
use super::instance::{CloudFault, Instance};
use super::operation::Operation;
use super::orphan::OrphanWish;
use super::ssh::SshWord;
use super::verdict::Leaving;

/// A node as the store remembers it. Beliefs are not stored: they are rebuilt from the agents in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub node: NodeId,
    pub role: Role,
    /// None for a node that no provider of ours launched, such as a gateway.
    pub deployment: Option<DeploymentName>,
    pub zone: String,
    /// `host:port` of its mTLS port, as it last said.
    pub address: Option<String>,
    /// Highest seen. 0 before the first word from it.
    pub incarnation: Incarnation,
    /// The launch that made it.
    pub launched_by: Option<OperationId>,
    /// Nodes in whose place it stands, until it has read their last checkpoints.
    #[serde(default)]
    pub predecessors: Vec<Predecessor>,
    /// Its agent has an object store for checkpoints, as it said when it connected.
    #[serde(default)]
    pub keeps_checkpoints: bool,
    /// Its last checkpoint was read by an heir, and it has not served since.
    #[serde(default)]
    pub is_read: bool,
    /// What an operator asked for; a controller that comes after goes on with it.
    #[serde(default)]
    pub asked: Option<Leaving>,
}

/// Everything that the store holds and a controller needs.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Of the reader, if it leads: above every earlier term. Else the newest.
    pub term: Term,
    /// Highest operation id ever recorded.
    pub operation_last: OperationId,
    pub deployments: Vec<Deployment>,
    pub nodes: Vec<NodeRecord>,
    /// Those still open.
    pub operations: Vec<Operation>,
}

/// Why a poll brought no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum PollFault {
    #[error("connection refused")]
    Refused,
    #[error("no answer in time")]
    Timeout,
    #[error("wrong or missing certificate")]
    Tls,
    #[error("answered something that is no report")]
    Answer,
    /// This controller had too many under way. It says nothing of the node.
    #[error("not asked")]
    NotAsked,
}

/// Outcome of one poll. An urgent poll is one outcome after all its attempts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Polled {
    pub node: NodeId,
    pub urgent: bool,
    /// From the request to its answer on an open connection; zero where there was none.
    pub trip: Duration,
    pub result: Result<Heartbeat, PollFault>,
}

/// One thing that happened. Plain data: it can be recorded and replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Nothing but time.
    Tick,
    /// This controller leads from now on, under the term that is in it.
    Restored(Restored),
    /// It does not, and this is what the store holds now, with the newest term. Comes again and again.
    Followed(Restored),
    /// It leads no more; what the store holds follows.
    SteppedDown,
    /// A node opened its control stream under a certificate that names it.
    Connected(Hello),
    /// That stream ended, however.
    Disconnected {
        node: NodeId,
        incarnation: Incarnation,
    },
    /// The newest of each node since the last batch.
    Heartbeats(Vec<Heartbeat>),
    /// A reliable event of a node, each once.
    Told {
        node: NodeId,
        incarnation: Incarnation,
        event: NodeEvent,
    },
    Polled(Polled),
    /// The warm poll connection closed under us.
    PollChannelLost {
        node: NodeId,
    },
    /// What the ssh port of a node said to an `Explain`.
    Explained {
        node: NodeId,
        ssh: SshWord,
    },
    /// What a node answered to a `CommandByPoll`; after a fault it may have taken it all the same.
    CommandAnswered {
        node: NodeId,
        operation: OperationId,
        result: Result<CommandOutcome, PollFault>,
    },
    /// What became of a `RestartBySsh`; the error is for people and ends in what ssh wrote.
    RestartedBySsh {
        node: NodeId,
        operation: OperationId,
        result: Result<(), String>,
    },
    /// The provider's answer to a `ListInstances`.
    Listed {
        provider: String,
        result: Result<Vec<Instance>, CloudFault>,
    },
    /// The store has this operation safely.
    Recorded {
        operation: OperationId,
    },
    /// What became of a `Launch` or `Terminate`.
    Performed {
        operation: OperationId,
        result: Result<(), CloudFault>,
    },
    /// An operator set or changed a deployment.
    Deployed(Deployment),
    /// An operator wants this node's place taken by another.
    ReplaceAsked {
        node: NodeId,
        reason: String,
    },
    /// An operator wants this node empty and gone, and nothing in its place beyond the wanted count.
    DrainAsked {
        node: NodeId,
        reason: String,
    },
    /// An operator says what is to become of a VM without a row.
    OrphanAsked {
        node: NodeId,
        wish: OrphanWish,
        reason: String,
    },
}
