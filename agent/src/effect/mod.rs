//! What the agent does to the world. Each effect performs actions of [`crate::core`] and answers with events.
//!
//! - [`checkpoint`]: what another node would go on with, in an object store.
//! - [`deadman_memory`]: what the next run must know of the dead-man switch.
//! - [`engine`]: the engine process: check, start, adopt, watch, stop, sweep what it leaves behind.
//! - [`gpu_memory`]: what the next run must know of the GPUs.
//! - [`link`]: the connections to the controllers, and enrolment.
//! - [`model`]: whether the model's files are there.
//! - [`power`]: the machine's end.

pub mod checkpoint;
pub mod deadman_memory;
pub mod engine;
pub mod gpu_memory;
pub mod link;
pub mod model;
pub mod power;
