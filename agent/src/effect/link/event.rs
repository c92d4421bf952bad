//! What the links bring in.

use std::sync::Arc;

use cic_common::id::{ControllerId, Term};
use cic_common::route::RoutingTable;

use crate::core::Event;

/// One thing a link has to say to the driver.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkEvent {
    /// A controller welcomed this node.
    Up { address: String, controller: ControllerId, term: Term },
    /// The link is gone; it is being dialled again.
    Down { address: String, reason: String },
    /// For the core: an assignment or a command.
    Core(Event),
    /// For the edge, which keeps the newest.
    Routes(Arc<RoutingTable>),
}
