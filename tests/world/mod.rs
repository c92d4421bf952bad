//! A world in one thread: the real cores of every program, and models of all that surrounds them.
//!
//! ```text
//! faults --> queue of happenings --> agent_host (real Agent)     --> engine, disk
//!                   ^                    |  push, poll
//!                   |                 network, session
//!                   |                    |
//!                   '------------ controller (real Fleet) --> store, provider (cloud)
//!                                        '--> facts --> the simulator's invariants
//! ```
//! [`World::advance`] lets one thing happen. Time is virtual, chance comes from one seed, nothing waits: the same
//! [`Setup`] always plays the same. [`Fact`]s say what was seen from outside both cores.

mod agent_host;
pub mod clock;
pub mod cloud;
pub mod controller;
pub mod engine;
mod fact;
pub mod fault;
mod happening;
pub mod machine;
pub mod network;
mod poll;
mod provider;
mod push;
pub mod queue;
mod reach;
pub mod rng;
mod session;
mod stale;
pub mod store;
pub mod trace;
#[allow(clippy::module_inception)]
mod world;

pub use fact::Fact;
pub use fault::Fault;
pub use world::{Setup, World};
