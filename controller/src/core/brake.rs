//! The rule that stops mass replacement.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The brake's limits. Each has a default that suits a small fleet; all are configurable.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BrakeRules {
    /// Terminations of VMs that may still be running, per provider within `window`.
    pub terminations_max: u32,
    /// Launches per provider within `window`: the spend limit in VMs.
    pub launches_max: u32,
    pub window: Duration,
    /// This share of a zone's nodes going silent together holds everything there…
    pub silent_share: f32,
    /// …if it is at least this many.
    pub silent_count_min: u32,
}

impl Default for BrakeRules {
    fn default() -> Self {
        Self {
            terminations_max: 5,
            launches_max: 20,
            window: Duration::from_secs(600),
            silent_share: 0.2,
            silent_count_min: 3,
        }
    }
}

/// Why an act is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold(pub String);

/// The brake.
#[derive(Debug)]
pub struct Brake;
