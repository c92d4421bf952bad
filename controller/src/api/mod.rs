//! The operator's HTTP API, port 7480.
//!
//! ```text
//! GET  /v1/view, nodes, deployments            <- the view the driver publishes
//! GET  /v1/events, operations                  <- the store
//! PUT  /v1/deployments/NAME, POST drain, replace -> the core, answered once it is stored
//! POST /v1/tokens                              -> the store
//! GET  /v1/sync                                <- the store
//! GET  /v1/health                              <- the monitor
//! GET  /healthz, /metrics
//! ```

mod access;
mod changes;
mod control;
mod deployment;
mod error;
mod metrics;
mod port;
mod reads;
mod routing;
mod server;

#[cfg(test)]
mod tests;

pub use deployment::{Wanted, WantedBy};
pub use error::{ErrorBody, ErrorText};
pub use routing::WantedRouting;
pub use server::{Api, serve};
