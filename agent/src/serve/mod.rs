//! What the agent answers.
//!
//! - [`peer`]: controllers' polls and other nodes' requests, over mutual TLS.
//! - [`edge`]: users' requests, answered by whichever replica can.

pub mod edge;
pub mod executor;
pub mod peer;
