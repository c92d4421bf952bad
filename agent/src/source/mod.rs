//! What the agent watches. Each source turns what it sees into events of [`crate::core`] and decides nothing.
//!
//! - [`host`]: cpu, memory, load and free disk.
//! - [`engine`]: whether the engine answers.
//! - [`gpu`]: whether there is an NVIDIA device, and what can be read of it.
//! - [`kmsg`]: what the kernel log says of GPUs and of processes killed for memory.
//! - [`spot`]: the cloud's word that the VM will be taken.

pub mod engine;
pub mod gpu;
pub mod host;
pub mod kmsg;
pub mod spot;
