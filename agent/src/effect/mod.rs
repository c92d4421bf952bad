//! What the agent does to the world. Each effect performs actions of [`crate::core`] and answers with events.
//!
//! - [`checkpoint`]: what another node would go on with, in an object store.
//! - [`engine`]: the engine process: check, start, adopt, watch, stop, sweep what it leaves behind.
//! - [`link`]: the connections to the controllers, and enrolment.
//! - [`memory`]: what the next run must know of the GPUs and of the dead-man switch.
//! - [`model`]: whether the model's files are there.
//! - [`power`]: the machine's end.

pub mod checkpoint;
pub mod engine;
pub mod link;
pub mod memory;
pub mod model;
pub mod power;
