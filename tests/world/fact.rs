//! What was seen from outside both cores: the material of the invariants.
//!
//! Facts are written by the world as it performs actions and delivers events. They never quote a core's own
//! bookkeeping, so that a core cannot talk its way out of a broken rule.

use cic_common::id::{DeploymentName, NodeId, OperationId, Term};
use cic_common::report::Phase;
use cic_common::route::RoutingTable;
use cic_controller::core::Operation;

/// One observation. Nodes are named by their index in the world where they have one.
#[derive(Debug, Clone)]
pub enum Fact {
    /// A controller started; `open` were recorded and open in the store.
    ControllerStarted {
        term: Term,
        open: Vec<OperationId>,
    },
    ControllerDied,
    /// It did not run for a while and does again.
    ControllerThawed,
    /// A report reached the controller: a heartbeat, a Hello, or a poll's answer.
    Heard {
        node: usize,
        is_poll: bool,
        /// Nothing later was heard before it.
        is_newest: bool,
        phase: Phase,
        /// It serves and nothing of its engine's work moves.
        is_stalled: bool,
        has_notice: bool,
        wants_replacement: bool,
    },
    /// The node said reliably that it will be taken, or that it cannot heal.
    Warned {
        node: usize,
        has_notice: bool,
        wants_replacement: bool,
    },
    /// The cloud's listing, as the controller got it, was without these, or had them as stopped.
    Unlisted {
        nodes: Vec<usize>,
    },
    /// An edge told the controller that it reaches no replica.
    EdgeCried {
        model: String,
    },
    /// The controller was told that it will not be, which may be wrong.
    Refused {
        operation: OperationId,
    },
    /// The controller was told that the store has it.
    Recorded {
        operation: OperationId,
    },
    /// The controller asked the store to record it.
    Intended(Operation),
    Launch {
        operation: OperationId,
        node: NodeId,
        deployment: DeploymentName,
    },
    Terminate {
        operation: OperationId,
        node: NodeId,
    },
    /// The controller is done with it.
    Closed {
        operation: OperationId,
    },
    /// A command left the controller.
    Commanded {
        operation: OperationId,
        node: NodeId,
        is_drain: bool,
    },
    Routes(RoutingTable),
    /// The controller found two reports, or a report and its digest, at odds.
    Discord {
        text: String,
    },
    Scaled {
        deployment: DeploymentName,
        replicas: u16,
    },
    /// An operator wants the node replaced or empty.
    OperatorAsked {
        node: usize,
        is_drain: bool,
    },
    /// A VM came to be.
    Launched {
        node: usize,
    },
    /// Something was done to this node, so that replacing it may be right.
    Blemished {
        node: usize,
    },
    /// Words of an older incarnation were fed; the text says what they changed, if anything.
    StaleWord {
        node: usize,
        kind: &'static str,
        changed: Option<String>,
    },
    /// A command of a lower term was fed; the text says what is wrong with the answer, if anything.
    StaleTerm {
        node: usize,
        wrong: Option<String>,
    },
    /// Something holds more than it may.
    Overfull {
        what: &'static str,
        count: usize,
        max: usize,
    },
}
