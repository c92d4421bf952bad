//! What a node says of itself: the body of a heartbeat and of a poll answer.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::gpu::{GpuSummary, GpuVerdict};
use crate::id::{DeploymentName, Incarnation, NodeId};
use crate::notice::{Notice, SpotReport};
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
    /// It answers and has work, and nothing of that work moves: to be routed out where others serve.
    Stalled,
}

impl EngineState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Stalled => "stalled",
        }
    }
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
    /// How the last one ended and by what cause, for people: `exit code 2: bad flag: …`, `signal 9`.
    pub last_exit: Option<String>,
    /// What differs between the running engine and the one that is asked for; it is kept all the same.
    pub drift: Option<String>,
}

impl EngineReport {
    #[must_use]
    pub fn absent() -> Self {
        Self {
            state: EngineState::Absent,
            pid: None,
            is_adopted: false,
            restart_count: 0,
            last_exit: None,
            drift: None,
        }
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

/// The GPUs of the node. Absent, blind and wedged are values, not errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuReport {
    /// This machine has no NVIDIA device.
    Absent,
    /// There is a device and nothing can be read of it.
    Blind {
        reason: String,
    },
    /// A call into the driver does not come back.
    Wedged {
        reason: String,
    },
    Seen(GpuSummary),
}

impl GpuReport {
    /// The verdict in a few words: `absent`, `blind`, `wedged`, `8 healthy`, `1 of 8 unhealthy: reset the GPU`.
    #[must_use]
    pub fn text(&self) -> String {
        let summary = match self {
            Self::Absent => return "absent".to_owned(),
            Self::Blind { reason } => return format!("blind: {reason}"),
            Self::Wedged { reason } => return format!("wedged: {reason}"),
            Self::Seen(summary) => summary,
        };
        let count = summary.gpus.len();
        let mut worst: Option<(u8, &str, String)> = None;
        let mut bad_count = 0;
        for gpu in &summary.gpus {
            let (rank, detail) = match &gpu.verdict {
                GpuVerdict::Healthy => continue,
                GpuVerdict::Degraded { reason } => (1, reason.clone()),
                GpuVerdict::Unhealthy { action, reason } => (2, format!("{action}: {reason}")),
            };
            bad_count += 1;
            if worst.as_ref().is_none_or(|(other, _, _)| rank > *other) {
                worst = Some((rank, gpu.verdict.as_str(), format!("gpu {}: {detail}", gpu.index)));
            }
        }
        match worst {
            None => format!("{count} healthy"),
            Some((_, word, detail)) => format!("{bad_count} of {count} {word}: {detail}"),
        }
    }
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
    /// Requests of users that were told that every replica is full.
    #[serde(default)]
    pub shed_count: u64,
    /// Requests of users that wait for a replica now.
    #[serde(default)]
    pub waiting: u32,
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
    /// The most urgent one that is open.
    pub notice: Option<Notice>,
    pub spot: SpotReport,
    /// While a model's files are fetched or compared.
    pub model: Option<ModelProgress>,
    /// Set when the node cannot heal itself, with the cause.
    pub wants_replacement: Option<String>,
    pub state: StateDigest,
}

/// How far a model's files are fetched or compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelProgress {
    pub done: Bytes,
    pub all: Bytes,
    /// In a second, since it began.
    pub rate: Bytes,
}

impl ModelProgress {
    /// How long the rest takes at this rate; `None` before anything is done.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let rest = self.all.0.saturating_sub(self.done.0);
        rest.checked_div(self.rate.0).map(Duration::from_secs)
    }
}

impl fmt::Display for ModelProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.done.0.saturating_mul(100).checked_div(self.all.0).unwrap_or(100);
        write!(f, "{percent} % ({} of {}), {}/s", self.done, self.all, self.rate)?;
        match self.left() {
            Some(left) if left.as_secs() >= 120 => write!(f, ", {} min left", left.as_secs() / 60),
            Some(left) => write!(f, ", {} s left", left.as_secs()),
            None => Ok(()),
        }
    }
}

/// Names one state of a node, so that what two paths brought can be compared.
///
/// Reports of one incarnation with the same version must have the same digest, and that of [`NodeReport::digest`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDigest {
    /// Counts up within an incarnation with every change of what the digest covers.
    pub version: u64,
    pub digest: u64,
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
            spot: SpotReport::default(),
            model: None,
            wants_replacement: None,
            state: StateDigest::default(),
        }
        .sealed(0)
    }

    /// The same with the digest of its own content and this version.
    #[must_use]
    pub fn sealed(mut self, version: u64) -> Self {
        self.state = StateDigest { version, digest: self.digest() };
        self
    }

    /// Digest of all that the controller judges by: phase, deployment, engine, GPU verdicts, wishes. Figures that
    /// move by themselves are left out.
    ///
    /// FNV-1a (64 bit) over a text, so that every build and every language computes the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let engine = &self.engine;
        let word = |word: Option<&str>| word.unwrap_or("-").to_owned();
        let mut text = format!(
            "{}|{}|{}|{}|{}|{}|{}|{}|",
            self.phase,
            word(self.deployment.as_ref().map(DeploymentName::as_str)),
            engine.state.as_str(),
            engine.pid.unwrap_or(0),
            engine.is_adopted,
            engine.restart_count,
            word(engine.drift.as_deref()),
            word(self.wants_replacement.as_deref()),
        );
        match &self.gpu {
            GpuReport::Absent | GpuReport::Blind { .. } | GpuReport::Wedged { .. } => {
                text.push_str(&self.gpu.text());
            }
            GpuReport::Seen(summary) => {
                for gpu in &summary.gpus {
                    text.push_str(&format!("{}={};", gpu.index, gpu.verdict.text()));
                }
            }
        }
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{GpuAction, GpuHealth};

    fn gpu(index: u32, verdict: GpuVerdict) -> GpuHealth {
        GpuHealth {
            index,
            verdict,
            memory_used: None,
            memory_total: None,
            utilization_percent: None,
            temperature_c: None,
        }
    }

    #[test]
    fn progress_says_how_much_how_fast_and_how_long_still() {
        const MIB: u64 = 1 << 20;
        let progress = |done: u64, rate: u64| {
            ModelProgress { done: Bytes(done * MIB), all: Bytes(400 * MIB), rate: Bytes(rate * MIB) }
                .to_string()
        };
        assert_eq!(progress(100, 2), "25 % (100.0 MiB of 400.0 MiB), 2.0 MiB/s, 2 min left");
        assert_eq!(progress(300, 10), "75 % (300.0 MiB of 400.0 MiB), 10.0 MiB/s, 10 s left");
        assert_eq!(progress(0, 0), "0 % (0 B of 400.0 MiB), 0 B/s");
    }

    #[test]
    fn the_digest_changes_with_the_state_and_not_with_figures() {
        let calm = NodeReport::booting();
        let mut busy = calm.clone();
        busy.host.cpu_percent = 99.0;
        busy.phase_for_ms = 7;
        assert_eq!(calm.digest(), busy.digest());
        let mut sick = calm.clone();
        let verdict = GpuVerdict::Degraded { reason: "XID 13".to_owned() };
        sick.gpu = GpuReport::Seen(GpuSummary { driver_version: None, gpus: vec![gpu(0, verdict)] });
        assert_ne!(calm.digest(), sick.digest());
        let sealed = sick.sealed(4);
        assert_eq!((sealed.state.version, sealed.state.digest), (4, sealed.digest()));
    }

    #[test]
    fn the_worst_gpu_is_the_one_named() {
        let summary = GpuSummary {
            driver_version: None,
            gpus: vec![
                gpu(0, GpuVerdict::Healthy),
                gpu(1, GpuVerdict::Degraded { reason: "XID 13".to_owned() }),
                gpu(2, GpuVerdict::Unhealthy { action: GpuAction::ResetGpu, reason: "XID 95".to_owned() }),
            ],
        };
        let text = GpuReport::Seen(summary).text();
        assert_eq!(text, "2 of 3 unhealthy: gpu 2: reset the GPU: XID 95");
    }
}
