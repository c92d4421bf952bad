//! Real programs as real processes on loopback: a fleet run by `cic dev`, and a client that loads it.

mod dev_fleet;
mod http;
mod load;
mod view;

pub use dev_fleet::{DevFleet, Fault, NOTICE_WITHIN, Options, binary, repository};
pub use http::{Answer, request};
pub use load::{Load, Outcome};
pub use view::View;
