//! What is known of the GPUs of a node, in three sizes.
//!
//! ```text
//! driver --NVML--> cic-gpu-probe --pipe--> agent --heartbeat--> controller
//!                  [message]  [sample]     verdict [health]
//! ```
//! - [`sample`]: everything that can be read of one GPU, each field alone known or not.
//! - [`message`]: what the probe and the agent say to each other over the probe's pipes.
//! - [`action`]: what NVIDIA says is to be done about a fault.
//! - [`health`]: the agent's verdict, small enough for a heartbeat.

pub mod action;
pub mod health;
pub mod message;
pub mod sample;

pub use action::{GpuAction, RecoveryAction};
pub use health::{GpuHealth, GpuSummary, GpuVerdict};
pub use message::{ProbeFault, ProbeMessage, ProbeRequest, XidSeen, XidSource};
pub use sample::{GpuInventory, GpuProcess, GpuSample, PciAddress};
