//! What the agent answers.
//!
//! - [`peer`]: controllers' polls and other nodes' requests, over mutual TLS.
//! - [`order`]: controllers' commands over that port, on their way to the core.
//! - [`files`]: the model's files, for other nodes over that port.
//! - [`metrics`], [`gpu_metrics`]: scrapes of this machine.
//! - [`edge`]: users' requests, answered by whichever replica can.

pub mod edge;
pub mod files;
pub mod gpu_metrics;
pub mod metrics;
pub mod order;
pub mod peer;
