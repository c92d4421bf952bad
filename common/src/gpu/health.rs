//! The agent's verdict on each GPU, small enough that eight of them fit a heartbeat beside everything else.

use serde::{Deserialize, Serialize};

use super::action::GpuAction;
use crate::units::Bytes;

/// Verdict on one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuVerdict {
    Healthy,
    /// It works, and people should know this.
    Degraded {
        reason: String,
    },
    /// It must not be worked with until `action` was taken, or until the way back that `reason` names.
    Unhealthy {
        action: GpuAction,
        reason: String,
    },
}

impl GpuVerdict {
    /// The verdict with its action and reason, for people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Healthy => "healthy".to_owned(),
            Self::Degraded { reason } => format!("degraded: {reason}"),
            Self::Unhealthy { action, reason } => format!("unhealthy: {action}: {reason}"),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded { .. } => "degraded",
            Self::Unhealthy { .. } => "unhealthy",
        }
    }
}

/// One GPU as a heartbeat carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuHealth {
    pub index: u32,
    pub verdict: GpuVerdict,
    pub memory_used: Option<Bytes>,
    pub memory_total: Option<Bytes>,
    pub utilization_percent: Option<u32>,
    pub temperature_c: Option<u32>,
}

/// All GPUs of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuSummary {
    pub driver_version: Option<String>,
    pub gpus: Vec<GpuHealth>,
}
