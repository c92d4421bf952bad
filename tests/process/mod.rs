//! Real programs as real processes on loopback: a fleet run by `cic dev`, one agent by itself, and clients.

mod dev_fleet;
mod gpus;
mod http;
mod load;
mod solo;
mod streams;
mod view;

pub use dev_fleet::{DevFleet, Fault, NOTICE_WITHIN, Options, binary, repository};
pub use gpus::StandInGpus;
pub use http::{Answer, request, request_as};
pub use load::{Load, Outcome};
pub use solo::{Solo, SoloOptions};
pub use streams::{Streams, StreamsSeen};
pub use view::View;
