//! One control stream between an agent run and a controller run: in order, retried while connected, broken by
//! silence longer than the idle timeout or by the death of an end.

use std::collections::VecDeque;
use std::time::Duration;

use cic_common::id::Incarnation;
use cic_common::route::RoutingTable;
use cic_common::time::Mono;
use cic_common::wire::message::{Hello, NodeEvent};
use cic_controller::core::Message;

/// Silence after which either end gives the connection up.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Both ends send at least this often, and look at the idle timeout.
pub(super) const PULSE: Duration = Duration::from_secs(1);

/// Packets that wait for a cut way to come back. An agent's unacknowledged events and a controller's commands and
/// tables of one idle timeout stay far below it.
pub(super) const WAITING_MAX: usize = 512;

/// One message on the stream.
#[derive(Debug, Clone)]
pub enum Packet {
    Hello(Hello),
    Event {
        seq: u64,
        event: NodeEvent,
    },
    Message(Message),
    Routes(RoutingTable),
    Ack {
        seq: u64,
    },
    /// The sender ends the connection in order.
    Close,
}

/// One way of the stream.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Sent and not through: the way is cut.
    pub(super) waiting: VecDeque<Packet>,
    /// When the newest packet under way arrives; later ones are never earlier.
    pub(super) last_at: Mono,
}

/// The connection, with what each end knows of it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: usize,
    pub(super) agent_run: u32,
    pub(super) controller_run: u32,
    pub(super) incarnation: Incarnation,
    pub(super) is_open_at_agent: bool,
    /// From the arrival of the Hello on.
    pub(super) is_open_at_controller: bool,
    pub(super) agent_heard_at: Mono,
    pub(super) controller_heard_at: Mono,
    pub(super) up: Lane,
    pub(super) down: Lane,
}

impl Session {
    #[must_use]
    pub(super) fn open(
        now: Mono,
        node: usize,
        agent_run: u32,
        controller_run: u32,
        incarnation: Incarnation,
    ) -> Self {
        Self {
            node,
            agent_run,
            controller_run,
            incarnation,
            is_open_at_agent: true,
            is_open_at_controller: false,
            agent_heard_at: now,
            controller_heard_at: now,
            up: Lane::default(),
            down: Lane::default(),
        }
    }

    #[must_use]
    pub(super) fn is_over(&self) -> bool {
        !self.is_open_at_agent && !self.is_open_at_controller
    }

    pub(super) fn close_at_agent(&mut self) {
        self.is_open_at_agent = false;
        self.up.waiting = VecDeque::new();
    }

    pub(super) fn close_at_controller(&mut self) {
        self.is_open_at_controller = false;
        self.down.waiting = VecDeque::new();
    }
}
