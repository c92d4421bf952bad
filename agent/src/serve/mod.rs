//! What the agent answers: other nodes and controllers on the peer port, users on the edge.

pub mod executor;
pub mod peer;
