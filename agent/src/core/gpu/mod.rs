//! The GPUs of the node, as the agent knows them.
//!
//! ```text
//! NVML, kernel log --GpuEvent--> Gpus::hear --> GpuFinding, GpuReport, condemned
//!                    XID -> [history] once -> [policy] with [catalogue], [nvlink] -> [mark] on a [device]
//!                    sample -> [roll], [condition] ----------------------------------^
//! ```
//! - [`catalogue`]: NVIDIA's XID catalogue as data.
//! - [`policy`]: from an XID and what else is known to an action.
//! - [`mark`]: what is wrong with a GPU, and the way back. A verdict is the gravest mark.
//! - [`gpus`]: all of them, and what a later run of the agent must remember.

pub mod catalogue;
mod condition;
mod device;
mod event;
pub mod gpus;
mod history;
pub mod mark;
mod memory;
mod nvlink;
pub mod policy;
mod roll;
#[cfg(test)]
mod tests;
mod timing;

pub use event::GpuEvent;
pub use gpus::{GpuFinding, Gpus, VramReading};
pub use memory::{GpuMemory, RememberedGpu};
pub use timing::GpuTiming;
