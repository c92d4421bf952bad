//! What can happen to an agent.

use cic_common::assignment::Assignment;
use cic_common::id::{OperationId, Term};
use cic_common::notice::NoticeKind;
use cic_common::report::{EdgeReport, GpuReport, HostReport};
use cic_common::time::Mono;
use cic_common::wire::message::Command;
use serde::{Deserialize, Serialize};

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
}

impl ModelFault {
    /// Whether waiting can heal it: a mount may appear later, a wrong index does not mend itself.
    #[must_use]
    pub fn may_heal(&self) -> bool {
        match self {
            Self::NoDirectory { .. } | Self::Unreadable { .. } => true,
            Self::MissingShard { .. } | Self::NoWeights { .. } => false,
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
    ModelVerified {
        attempt: u32,
        result: Result<(), ModelFault>,
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
    /// `how` is for people: `exit code 1`, `signal 9`; `log_tail` the last lines it wrote.
    EngineExited {
        pid: u32,
        how: String,
        log_tail: Vec<String>,
    },
    EngineProbed {
        pid: u32,
        result: Result<(), ProbeFault>,
    },
    HostSampled(HostReport),
    GpuSampled(GpuReport),
    EdgeCounted(EdgeReport),
    /// The deadline is on this process's own clock.
    NoticeSeen {
        kind: NoticeKind,
        source: String,
        id: String,
        deadline: Mono,
    },
    NoticeLifted {
        source: String,
        id: String,
    },
    /// Init asks the agent to end. The engine stays for the next run to adopt, unless `with_engine`.
    StopAsked {
        with_engine: bool,
        reason: String,
    },
}
