//! What can happen to an agent.

use std::time::Duration;

use cic_common::assignment::Assignment;
use cic_common::id::{NodeId, OperationId, Term};
use cic_common::notice::{Cloud, Confidence, NoticeKind};
use cic_common::report::{EdgeReport, HostReport};
use cic_common::time::Mono;
use cic_common::wire::message::Command;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Occasion, Restored, Saved};
use super::deadman::DeadmanMemo;
use super::gpu::GpuEvent;
use super::proof::GpuMemo;

/// An engine process of an earlier agent run that is still alive, checked by start time and boot id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFound {
    pub pid: u32,
    /// The assignment it was started for.
    pub assignment: Assignment,
}

/// What the state directory held when the agent started.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booted {
    pub engine: Option<EngineFound>,
    /// The last assignment and the term it came from.
    pub remembered: Option<(Term, Assignment)>,
    /// What an earlier run of this boot knew of the GPUs; `None` after a reboot.
    pub gpus: Option<GpuMemo>,
    /// Of the files that the found engine was started on.
    pub model_digest: Option<String>,
    /// The newest restart that an earlier run obeyed.
    #[serde(default)]
    pub restarted_for: Option<(Term, OperationId)>,
    /// For how long nobody had counted on this VM, and how long ago that was noted in this boot.
    #[serde(default)]
    pub deadman: Option<(DeadmanMemo, Duration)>,
}

/// Why a model cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ModelFault {
    #[error("no model directory {path}")]
    NoDirectory { path: String },
    #[error("{path} names shard {shard}, which is not there")]
    MissingShard { path: String, shard: String },
    #[error("{path} holds neither a safetensors index nor a single safetensors file")]
    NoWeights { path: String },
    #[error("cannot read {path}: {cause}")]
    Unreadable { path: String, cause: String },
    #[error("{path}: {cause}")]
    Damaged { path: String, cause: String },
    #[error("{url}: {cause}")]
    NotMounted { url: String, cause: String },
    #[error("{url}: {cause}")]
    NotFetched { url: String, cause: String },
}

impl ModelFault {
    /// Whether waiting can heal it: a mount may appear later, a wrong index does not mend itself.
    #[must_use]
    pub fn may_heal(&self) -> bool {
        match self {
            Self::NoDirectory { .. } | Self::Unreadable { .. } => true,
            Self::NotMounted { .. } | Self::NotFetched { .. } => true,
            Self::MissingShard { .. } | Self::NoWeights { .. } | Self::Damaged { .. } => false,
        }
    }
}

/// Which step of the readiness probe failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProbeFault {
    #[error("/health: {0}")]
    Health(String),
    #[error("/v1/models: {0}")]
    Models(String),
    #[error("one-token completion: {0}")]
    Completion(String),
}

/// What an engine has to do and how far it has come, by its `/metrics` (names of vLLM 0.32).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// `vllm:num_requests_running`, summed over its engines.
    pub running: u64,
    /// `vllm:num_requests_waiting`.
    pub waiting: u64,
    /// `vllm:iteration_tokens_total_count`: one more with each step of the engine.
    pub iterations: Option<u64>,
    /// `vllm:generation_tokens_total`.
    pub generation_tokens: Option<u64>,
    /// `vllm:prompt_tokens_total`.
    pub prompt_tokens: Option<u64>,
}

/// What a probe read beside its verdict. `None` where `/metrics` could not be read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// Before the completion of a deep probe.
    pub before: Option<Work>,
    pub after: Option<Work>,
    /// A completion was asked for and came.
    pub is_completed: bool,
}

/// Traces that a loading engine leaves; each only grows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Bytes ever written to its log.
    pub log_bytes: u64,
    /// Bytes its processes have read (`rchar` of `/proc/PID/io`).
    pub read_bytes: u64,
}

/// How an engine ended and what was found then.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineEnd {
    /// For people: `exit code 1`, `signal 9`.
    pub how: String,
    /// The last lines it wrote.
    pub log_tail: Vec<String>,
    /// Every process that was seen to be the engine's.
    pub pids: Vec<u32>,
    /// Those of them that outlived SIGKILL.
    pub left: Vec<u32>,
    /// Where its threads hung in the kernel, when it was stopped for not moving.
    pub stacks: Vec<String>,
}

/// Why a start is not worth trying.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckFault {
    /// All mistakes at once, each with the way out.
    pub reason: String,
    /// Whether waiting can heal it: memory may be freed, a flag does not appear.
    pub may_heal: bool,
}

/// One thing that happened. Plain data: it can be recorded and replayed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Nothing but time.
    Tick,
    /// First event of every run.
    Booted(Booted),
    /// A controller says what to run.
    Assigned {
        term: Term,
        assignment: Assignment,
    },
    Commanded {
        operation: OperationId,
        term: Term,
        command: Command,
    },
    ModelMounted {
        attempt: u32,
        result: Result<(), ModelFault>,
    },
    /// A step on the model's files has come so far.
    ModelProgress {
        attempt: u32,
        done_bytes: u64,
        all_bytes: u64,
    },
    ModelFetched {
        attempt: u32,
        result: Result<(), ModelFault>,
    },
    ModelVerified {
        attempt: u32,
        result: Result<(), ModelFault>,
    },
    /// Whether the engine can start here with this command line.
    EngineChecked {
        attempt: u32,
        result: Result<(), CheckFault>,
    },
    EngineStarted {
        attempt: u32,
        pid: u32,
    },
    /// The process could not be created at all, or its command line was refused.
    EngineStartFailed {
        attempt: u32,
        reason: String,
        may_heal: bool,
    },
    EngineExited {
        pid: u32,
        end: EngineEnd,
    },
    EngineProbed {
        pid: u32,
        reading: Reading,
        result: Result<(), ProbeFault>,
    },
    /// Answer to `LookAtEngine`.
    EngineSeen {
        pid: u32,
        activity: Activity,
    },
    /// The kernel killed a process for want of memory.
    OomKilled {
        pid: u32,
        text: String,
    },
    HostSampled(HostReport),
    /// A controller spoke since the last time, or else a request was served.
    Contact {
        by_controller: bool,
    },
    Gpu(GpuEvent),
    EdgeCounted(EdgeReport),
    /// Requests that the edge holds in this node's own engine.
    EngineOccupied {
        in_flight: u32,
    },
    /// Whose machine this is, and which sources of notices it has. Each says `SpotSeen` once it was read.
    CloudFound {
        cloud: Cloud,
        sources: Vec<String>,
    },
    /// The deadline is on this process's own clock.
    NoticeSeen {
        kind: NoticeKind,
        source: String,
        id: String,
        deadline: Mono,
        confidence: Confidence,
        resources: Vec<String>,
    },
    NoticeLifted {
        source: String,
        id: String,
    },
    /// A source of notices cannot be read: what it would say is not known.
    SpotBlind {
        source: String,
        since: Mono,
        cause: String,
    },
    /// It was read for the first time, or can be read again.
    SpotSeen {
        source: String,
    },
    /// What the verified files of an attempt are, or why that is not known.
    ModelKnown {
        attempt: u32,
        result: Result<String, String>,
    },
    /// Answer to `Checkpoint`, where there is a store for it.
    Checkpointed {
        occasion: Occasion,
        result: Result<Saved, String>,
    },
    /// The controller launched this node in the place of another.
    TakesPlaceOf {
        term: Term,
        predecessor: NodeId,
        /// Its VM is no more: it will write nothing.
        is_gone: bool,
    },
    /// Answer to `Restore`, where there is a store for it.
    Restored {
        from: NodeId,
        result: Result<Restored, String>,
    },
    /// Init asks the agent to end. The engine stays for the next run to adopt, unless `with_engine`.
    StopAsked {
        with_engine: bool,
        reason: String,
    },
}
