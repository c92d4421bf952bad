//! What the leader says to one node, on its way to the wire.

use cic_common::id::ControllerId;
use cic_common::wire::message::{ControllerMessage, Welcome};

use crate::core::Message;

/// How this controller presents itself in a `Welcome`.
#[derive(Debug, Clone)]
pub(super) struct Greeting {
    pub(super) controller: ControllerId,
    pub(super) heartbeat_ms: u32,
}

impl Greeting {
    pub(super) fn message(&self, message: Message) -> ControllerMessage {
        match message {
            Message::Welcome { term, assignment, predecessors } => ControllerMessage::Welcome(Welcome {
                controller: self.controller.clone(),
                term,
                assignment,
                predecessors,
                heartbeat_ms: self.heartbeat_ms,
            }),
            Message::Assign { term, assignment, predecessors } => {
                ControllerMessage::Assign { term, assignment, predecessors }
            }
            Message::Command { operation, term, command } => {
                ControllerMessage::Command { operation, term, command }
            }
            Message::Challenge { number } => ControllerMessage::Challenge { number },
        }
    }
}
