#![allow(clippy::unwrap_used)]
//! The GPU probe as a real process over a stand-in for NVML (`tests/nvml`), alone and under the agent's watch.

mod events;
mod probe;
mod stand;
mod watch;
