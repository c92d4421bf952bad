//! What the agent decides, without a clock, a socket or a process.
//!
//! Shells turn what they see into an [`Event`] and hand it to [`Agent::step`] with the time; the agent answers
//! with [`Action`]s for the shells to perform, and says by [`Agent::deadline`] when it wants an
//! [`Event::Tick`] if nothing else happens. The same events always give the same actions.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod action;
mod agent;
mod bringup;
mod checkpoint;
mod condition;
mod crash;
mod deadman;
mod drain;
mod ending;
mod event;
mod files;
mod gate;
pub mod gpu;
mod notices;
mod progress;
mod proof;
mod restart;
mod search;
mod sight;
mod stage;
#[cfg(test)]
mod tests;
pub mod timing;

pub use action::{Action, Depth, EdgeMode, GpuFacts};
pub use agent::{Agent, AgentSpec};
pub use checkpoint::{Occasion, Restored, Saved};
pub use crash::{CrashCause, CrashRecord};
pub use deadman::{DeadmanMemo, DeadmanSpec};
pub use event::{
    Activity, Booted, CheckFault, EngineEnd, EngineFound, Event, ModelFault, ProbeFault, Reading, Work,
};
pub use proof::GpuMemo;
pub use timing::Timing;
