//! Real programs as real processes on loopback: a fleet run by `cic dev`, and a client that loads it.

mod dev_fleet;
mod http;
mod load;

pub use dev_fleet::{DevFleet, Fault, Options, binary, repository};
pub use http::{Answer, request};
pub use load::{Load, Outcome};
