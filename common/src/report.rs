//! What a node says of itself: the body of a heartbeat and of a poll answer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{DeploymentName, Incarnation, NodeId};
use crate::notice::Notice;
use crate::units::Bytes;

/// What a node is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs an engine.
    Replica,
    /// Runs only the edge.
    Gateway,
}

/// How far a node has come, by its own word.
///
/// ```text
/// Booting -> Mounting -> Verifying -> Loading -> Serving -> Draining -> Stopped
///                ^----------^-- retry ---^---------'            (any) -> Failed
/// ```
/// A gateway goes from Booting to Serving at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Booting,
    Mounting,
    Verifying,
    Loading,
    Serving,
    Draining,
    Stopped,
    Failed,
}

impl Phase {
    pub const ALL: [Self; 8] = [
        Self::Booting,
        Self::Mounting,
        Self::Verifying,
        Self::Loading,
        Self::Serving,
        Self::Draining,
        Self::Stopped,
        Self::Failed,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Mounting => "mounting",
            Self::Verifying => "verifying",
            Self::Loading => "loading",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether the node is still on its way to serving.
    #[must_use]
    pub fn is_starting(self) -> bool {
        match self {
            Self::Booting | Self::Mounting | Self::Verifying | Self::Loading => true,
            Self::Serving | Self::Draining | Self::Stopped | Self::Failed => false,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// State of the engine process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// None was started, or this node has none.
    Absent,
    Starting,
    Ready,
    /// Was ready, and its last readiness probe failed.
    Unready,
    Stopping,
    /// Ended; waiting for the next start or for a person.
    Exited,
}

/// The engine as the agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    pub state: EngineState,
    pub pid: Option<u32>,
    /// The process was started by an earlier run of this agent and taken over.
    pub is_adopted: bool,
    /// Starts after the first since this agent started.
    pub restart_count: u32,
    /// How the last one ended, for people: `exit code 1`, `signal 9`.
    pub last_exit: Option<String>,
}

impl EngineReport {
    #[must_use]
    pub fn absent() -> Self {
        Self { state: EngineState::Absent, pid: None, is_adopted: false, restart_count: 0, last_exit: None }
    }
}

/// The machine's own figures.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// Share of all cores in use since the last sample, 0 to 100.
    pub cpu_percent: f32,
    /// One-minute load average.
    pub load_1m: f32,
    pub memory_used: Bytes,
    pub memory_total: Bytes,
    /// Free space of the file system that holds the agent's state directory.
    pub disk_free: Bytes,
}

/// The GPUs of the node. Absent and blind are values, not errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuReport {
    /// This machine has no NVIDIA device.
    Absent,
    /// There is a device and nothing can be read of it.
    Blind { reason: String },
}

/// What passes through the node's edge.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeReport {
    pub in_flight: u32,
    pub request_count: u64,
    /// Attempts repeated on another replica before the client had a byte.
    pub retry_count: u64,
    /// Requests the client saw fail for want of a working replica.
    pub failure_count: u64,
}

/// Everything a node says of itself, whole each time: a lost report is made good by the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub phase: Phase,
    /// Milliseconds in this phase when the report was made.
    pub phase_for_ms: u64,
    /// Why the node is in this phase, for people.
    pub reason: String,
    pub deployment: Option<DeploymentName>,
    pub engine: EngineReport,
    pub host: HostReport,
    pub gpu: GpuReport,
    pub edge: EdgeReport,
    pub notice: Option<Notice>,
    /// Set when the node cannot heal itself, with the cause.
    pub wants_replacement: Option<String>,
}

impl NodeReport {
    /// What a node says before anything has happened.
    #[must_use]
    pub fn booting() -> Self {
        Self {
            phase: Phase::Booting,
            phase_for_ms: 0,
            reason: "agent started".to_owned(),
            deployment: None,
            engine: EngineReport::absent(),
            host: HostReport::default(),
            gpu: GpuReport::Absent,
            edge: EdgeReport::default(),
            notice: None,
            wants_replacement: None,
        }
    }
}

/// A report with the fences that order it. Sent as a datagram once a second, and as the answer to a poll.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Counts up within one incarnation; the newest wins.
    pub seq: u64,
    /// The newest challenge received from the controller this is sent to; 0 before the first.
    pub challenge: u64,
    pub report: NodeReport,
}
