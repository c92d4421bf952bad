//! The operator's HTTP API, port 7480.
//!
//! ```text
//! GET  /v1/view, nodes, deployments            <- the view the driver publishes
//! GET  /v1/events, operations                  <- the store
//! PUT  /v1/deployments/NAME, POST drain, replace -> the core, answered once it is stored
//! POST /v1/tokens                              -> the store
//! GET  /v1/sync                                <- the store
//! GET  /v1/health                              <- the monitor
//! POST /v1/failover                            -> the lease's keeper
//! GET  /v1/leader, /healthz, /healthz/leader, /healthz/ready, /metrics
//! ```
//! A standby answers the reads, and sends whoever wants a change to the leader.

mod access;
mod changes;
mod control;
mod deployment;
mod error;
mod leader;
mod metrics;
mod orphans;
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
