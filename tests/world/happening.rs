//! What can be next: everything that is scheduled in the world.

use cic_agent::core::Event as AgentEvent;
use cic_common::id::{DeploymentName, NodeId, OperationId, Term};
use cic_common::report::Heartbeat;
use cic_common::wire::message::Command;
use cic_controller::core::Event as FleetEvent;

use super::fault::Fault;
use super::network::Way;
use super::session::Packet;

/// One act at the cloud's API, carried out when its request gets there.
#[derive(Debug, Clone)]
pub enum CloudAct {
    Launch { operation: OperationId, node: NodeId, deployment: DeploymentName, zone: String },
    Terminate { operation: OperationId, node: NodeId },
    List { provider: String },
}

/// One poll under way.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub node: usize,
    /// Run of the controller that asks.
    pub run: u32,
    pub is_urgent: bool,
    pub attempt: u32,
    /// What each attempt is given.
    pub within: std::time::Duration,
    pub deadline: cic_common::time::Mono,
}

/// One order by the poll path under way.
#[derive(Debug, Clone)]
pub struct Ordered {
    pub node: usize,
    /// Run of the controller that orders.
    pub run: u32,
    pub operation: OperationId,
    pub term: Term,
    pub command: Command,
    pub deadline: cic_common::time::Mono,
}

/// One thing that is going to happen. Nodes are named by their index in the world; `run` is the process that it
/// is for: what comes for a process that is no more is dropped.
#[derive(Debug)]
pub enum Happening {
    HostBoots {
        node: usize,
    },
    /// A cloud without a word takes the VM, or its host dies for good.
    VmEnds {
        vm: usize,
    },
    /// The cloud notices that a host is dead.
    VmStops {
        vm: usize,
    },
    AgentStarts {
        node: usize,
    },
    AgentWakes {
        node: usize,
        run: u32,
        at: cic_common::time::Mono,
    },
    AgentHears {
        node: usize,
        run: u32,
        event: Box<AgentEvent>,
    },
    /// The edge counts its requests while it drains.
    EdgeCounts {
        node: usize,
        run: u32,
    },
    EngineEnds {
        node: usize,
        pid: u32,
        how: &'static str,
    },
    /// A stalled engine moves again.
    EngineMoves {
        node: usize,
        pid: u32,
    },
    NodeThaws {
        node: usize,
    },

    AgentConnects {
        node: usize,
        run: u32,
    },
    Established {
        node: usize,
        run: u32,
        controller_run: u32,
    },
    Delivered {
        session: usize,
        way: Way,
        packet: Box<Packet>,
    },
    Datagram {
        session: usize,
        heartbeat: Box<Heartbeat>,
    },
    Pulse {
        session: usize,
    },

    PollArrives(Asked),
    PollRunsOut(Asked),
    OrderArrives(Box<Ordered>),
    /// Init starts the agent anew, as `run` of the controller asked over ssh.
    SshRestarts {
        node: usize,
        run: u32,
        operation: OperationId,
    },

    CloudActs {
        run: u32,
        act: Box<CloudAct>,
        reply_at: Option<cic_common::time::Mono>,
    },

    ControllerStarts,
    ControllerWakes {
        run: u32,
        at: cic_common::time::Mono,
    },
    ControllerHears {
        run: u32,
        event: Box<FleetEvent>,
    },
    MailboxEmpties {
        run: u32,
    },
    StoreCommits {
        run: u32,
        count: usize,
    },
    ControllerThaws {
        run: u32,
    },
    OperatorLooks,

    Strikes(Fault),
}

impl Happening {
    /// The node whose processes would have to run for this to be noticed.
    #[must_use]
    pub fn needs_node(&self) -> Option<usize> {
        match self {
            Self::AgentHears { node, .. } | Self::AgentConnects { node, .. } => Some(*node),
            Self::Established { node, .. } | Self::EdgeCounts { node, .. } => Some(*node),
            _ => None,
        }
    }

    /// The controller run that would have to be running for this to be noticed.
    #[must_use]
    pub fn needs_controller(&self) -> Option<u32> {
        match self {
            Self::ControllerHears { run, .. }
            | Self::MailboxEmpties { run }
            | Self::StoreCommits { run, .. } => Some(*run),
            _ => None,
        }
    }
}
