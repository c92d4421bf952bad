//! What the agent answers.
//!
//! - [`peer`]: controllers' polls and other nodes' requests, over mutual TLS.
//! - [`metrics`], [`gpu_metrics`]: scrapes of this machine.
//! - [`edge`]: users' requests, answered by whichever replica can.

pub mod edge;
pub mod gpu_metrics;
pub mod metrics;
pub mod peer;
