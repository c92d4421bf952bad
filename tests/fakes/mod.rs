//! Fake metadata services of AWS, GCP and Azure on one loopback port, with the faults that the real ones have been seen to
//! have.
//!
//! [`MetadataFake`] is the port. What it says is held by a state for each cloud (`aws`, `gcp`, `azure`); `fault`
//! spoils answers on their way out; `control` lets a person at a terminal do both over the same port. Shapes, codes and
//! headers are those of `docs/notices.md`, which names the vendors' pages.

mod aws;
mod azure;
mod control;
mod fault;
mod gcp;
mod server;

pub use self::aws::{AwsKey, Scheduled};
pub use self::azure::AzureEvent;
pub use self::fault::Fault;
pub use self::gcp::GcpKey;
pub use self::server::{Logged, MetadataFake};
