//! The GPUs of the node, as the agent knows them.

mod event;

pub use event::GpuEvent;
