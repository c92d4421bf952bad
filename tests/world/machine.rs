//! One node: its host, its disk, the agent's process with the real core in it, and the engine's.

use std::collections::VecDeque;

use cic_agent::core::{Agent, EdgeMode};
use cic_common::assignment::Assignment;
use cic_common::id::{DeploymentName, Incarnation, NodeId, OperationId, Term};
use cic_common::notice::NoticeKind;
use cic_common::report::{Heartbeat, Phase};
use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use cic_common::wire::message::{Hello, NodeEvent};

use super::clock::Origin;
use super::engine::Engine;
use super::happening::Happening;

/// Reliable events an agent keeps until they are acknowledged.
pub const OUTBOX_MAX: usize = 256;

/// State of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Booting,
    Up,
    /// Dead, though its cloud calls it running.
    Down,
    /// Its VM is no more.
    Ended,
}

/// A notice as the machine's metadata service tells it.
#[derive(Debug, Clone)]
pub struct PostedNotice {
    pub kind: NoticeKind,
    pub id: String,
    pub deadline: Mono,
}

/// One run of the agent.
#[derive(Debug)]
pub struct Process {
    pub run: u32,
    pub agent: Agent,
    pub origin: Origin,
    pub incarnation: Incarnation,
    /// Of heartbeats and poll answers alike.
    pub seq: u64,
    pub challenge: u64,
    pub session: Option<usize>,
    /// Attempts to connect since the last success.
    pub attempts: u32,
    pub outbox: VecDeque<(u64, NodeEvent)>,
    pub event_seq: u64,
    pub edge: EdgeMode,
    /// Requests running through the edge.
    pub in_flight: u32,
    pub routes: RoutingTable,
    pub wake: Option<Mono>,
    /// Ticks in a row without time passing.
    pub ticks_at: (Mono, u32),
    /// Highest term that reached it.
    pub term_heard: Term,
}

/// One VM and all that runs on it.
#[derive(Debug)]
pub struct Machine {
    pub node: NodeId,
    pub deployment: DeploymentName,
    pub vm: usize,
    pub zone: String,
    pub host: Host,
    /// Agent and engine are stopped by a signal.
    pub is_frozen: bool,
    pub incarnation: Incarnation,
    pub remembered: Option<(Term, Assignment)>,
    /// The newest restart that an agent of it obeyed.
    pub restarted_for: Option<(Term, OperationId)>,
    pub engine: Option<Engine>,
    pub pid_next: u32,
    pub process: Option<Process>,
    pub runs: u32,
    pub notice: Option<PostedNotice>,
    /// Its cloud advised at some time that it may be taken.
    pub was_advised: bool,
    /// A poll connection is open.
    pub is_warm: bool,
    /// What came for a frozen agent.
    pub pile: Vec<Happening>,
    /// What its earlier runs said last: the network may yet deliver it.
    pub last_words: Option<Heartbeat>,
    pub last_hello: Option<Hello>,
}

impl Machine {
    #[must_use]
    pub fn new(node: NodeId, deployment: DeploymentName, vm: usize, zone: String) -> Self {
        Self {
            node,
            deployment,
            vm,
            zone,
            host: Host::Booting,
            is_frozen: false,
            incarnation: Incarnation(0),
            remembered: None,
            restarted_for: None,
            engine: None,
            pid_next: 100,
            process: None,
            runs: 0,
            notice: None,
            was_advised: false,
            is_warm: false,
            pile: Vec::new(),
            last_words: None,
            last_hello: None,
        }
    }

    /// Whether a user's request sent to this node would be served.
    #[must_use]
    pub fn is_serving(&self, now: Mono) -> bool {
        let admits = self.process.as_ref().is_some_and(|process| {
            process.edge == EdgeMode::Admit
                && process.agent.report(process.origin.local(now)).phase == Phase::Serving
        });
        self.host == Host::Up && !self.is_frozen && admits && self.is_engine_ready(now)
    }

    #[must_use]
    pub fn is_engine_ready(&self, now: Mono) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.is_ready(now))
    }

    /// The current process, if it is this run.
    pub fn running(&mut self, run: u32) -> Option<&mut Process> {
        self.process.as_mut().filter(|process| process.run == run)
    }
}
