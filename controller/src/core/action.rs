//! What a controller does about what happened.

use std::time::Duration;

use cic_common::assignment::{Assignment, Predecessor};
use cic_common::id::{DeploymentName, NodeId, OperationId, Term};
use cic_common::route::RoutingTable;
use cic_common::wire::message::Command;
use serde::{Deserialize, Serialize};

use super::deployment::Deployment;
use super::event::NodeRecord;
use super::operation::Operation;
use super::price::UsdPerHour;
use super::sync::SyncRecord;
use super::trail::EventRecord;

/// What the leader says to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// First answer to a node that connected.
    Welcome {
        term: Term,
        assignment: Option<Assignment>,
        /// Nodes whose checkpoints it is to read.
        predecessors: Vec<Predecessor>,
    },
    Assign {
        term: Term,
        assignment: Assignment,
        predecessors: Vec<Predecessor>,
    },
    Command {
        operation: OperationId,
        term: Term,
        command: Command,
    },
    Challenge {
        number: u64,
    },
}

/// One act for a shell to perform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Store this operation; answer with `Recorded`. Until it can, nothing of it is performed.
    Record(Operation),
    /// Store the operation's new state; no answer.
    Close(Operation),
    /// Store this row; no answer.
    SaveNode(NodeRecord),
    /// The node's VM is gone for good: delete its row.
    ForgetNode(NodeId),
    SaveDeployment(Deployment),
    /// How the newest listing of a provider stands to the rows; no answer.
    SaveSync(SyncRecord),
    /// Launch the VM of `node`, or find the one an earlier try of the same `operation` made; answer `Performed`.
    Launch {
        operation: OperationId,
        provider: String,
        node: NodeId,
        deployment: DeploymentName,
        zone: String,
        /// A provider that knows prices refuses a dearer VM.
        price_limit: Option<UsdPerHour>,
    },
    /// Give the VM of `node` back; one that is already absent counts as done; answer `Performed`.
    Terminate {
        operation: OperationId,
        provider: String,
        node: NodeId,
    },
    /// Answer with `Listed`.
    ListInstances {
        provider: String,
    },
    /// `urgent`: at once, two attempts on fresh connections. Answer `Polled` after `within` at the latest, not counting
    /// the wait for a turn.
    Poll {
        node: NodeId,
        address: String,
        urgent: bool,
        within: Duration,
    },
    /// Ask the ssh port at the host of `address` who it is; answer `Explained`. Asked again meanwhile, one answer
    /// serves both.
    Explain {
        node: NodeId,
        address: String,
    },
    /// Over a fresh connection to the mTLS port, where the control stream does not reach; answer `CommandAnswered`.
    CommandByPoll {
        node: NodeId,
        address: String,
        operation: OperationId,
        term: Term,
        command: Command,
    },
    /// Have the init system at the host of `address` start the agent anew; answer `RestartedBySsh`.
    RestartBySsh {
        node: NodeId,
        address: String,
        operation: OperationId,
    },
    /// Over the control stream; lost silently when there is none.
    Send {
        node: NodeId,
        message: Message,
    },
    /// Make this table known to every connected agent.
    PublishRoutes(RoutingTable),
    /// Append to the event log.
    Note(EventRecord),
}
