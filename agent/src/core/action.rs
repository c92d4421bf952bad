//! What an agent does about what happened.

use cic_common::assignment::{Assignment, ModelSpec};
use cic_common::id::{NodeId, OperationId, Term};
use cic_common::units::Bytes;
use cic_common::wire::message::NodeEvent;
use serde::{Deserialize, Serialize};

use super::checkpoint::Occasion;
use super::crash::CrashRecord;
use super::deadman::DeadmanMemo;
use super::proof::GpuMemo;

/// What the edge does with a request for this node's own engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeMode {
    Admit,
    /// New requests are refused with 503 and this reason, so that the sender tries another replica.
    Refuse {
        reason: String,
    },
    /// Like `Refuse`; requests already admitted go on.
    Drain {
        reason: String,
    },
    /// Only requests that no other replica took are let in.
    Reluctant {
        reason: String,
    },
}

impl EdgeMode {
    /// Why not every request is let in; empty when every one is.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Admit => "",
            Self::Refuse { reason } | Self::Drain { reason } | Self::Reluctant { reason } => reason,
        }
    }
}

/// How much a probe asks of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// `/health` and `/metrics`.
    Shallow,
    /// Also whether `/v1/models` names the model, and one token of it, with `/metrics` read before and after.
    Deep,
    /// Also one token, which may take as long as a stall may last, with `/metrics` read before and after.
    Canary,
}

/// What a start check must know of the GPUs.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFacts {
    /// `None` where none can be read.
    pub count: Option<u32>,
    /// Newest CUDA the driver supports: 1000 × major + 10 × minor.
    pub cuda_version: Option<u32>,
    pub driver_version: Option<String>,
    /// As the driver names the first: `NVIDIA H100 80GB HBM3`.
    pub name: Option<String>,
    /// Memory of each; empty where that of one is not known.
    pub memory: Vec<Bytes>,
}

/// One act for a shell to perform. Results come back as events carrying the same `attempt` or `pid`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make the current report known to every controller now.
    Heartbeat,
    /// Tell every controller, repeated until acknowledged.
    Tell(NodeEvent),
    /// Write the assignment to the state directory.
    Remember {
        term: Term,
        assignment: Assignment,
    },
    /// Write to the state directory, before the exit that follows, for which operation this run ends.
    RememberRestart {
        term: Term,
        operation: OperationId,
    },
    MountModel {
        attempt: u32,
        model: ModelSpec,
    },
    VerifyModel {
        attempt: u32,
        model: ModelSpec,
    },
    /// Have `url` mounted on the model's directory, anew where it is dead; ends in `ModelMounted`.
    AttachModel {
        attempt: u32,
        url: String,
        model: ModelSpec,
    },
    /// Make the model's directory what is published at `url`; ends in `ModelFetched`.
    FetchModel {
        attempt: u32,
        url: String,
        model: ModelSpec,
    },
    /// Have verified files in the page cache by the time that the engine reads them.
    WarmModel {
        model: ModelSpec,
    },
    /// Give up what is under way on a model's files.
    LeaveModel,
    /// Whether flags, memory and driver allow a start; ends in `EngineChecked`.
    CheckEngine {
        attempt: u32,
        assignment: Assignment,
        gpus: GpuFacts,
    },
    StartEngine {
        attempt: u32,
        assignment: Assignment,
        /// Where the model was found.
        directory: String,
    },
    /// `/health`, and the counters of `/metrics`; how much more is the depth's to say.
    ProbeEngine {
        pid: u32,
        model: String,
        depth: Depth,
    },
    /// What the engine has read and written; ends in `EngineSeen`.
    LookAtEngine {
        pid: u32,
    },
    /// SIGTERM now, SIGKILL to the whole session after `grace_ms`; ends in `EngineExited`. With `autopsy` it is
    /// first written down where its threads are.
    StopEngine {
        pid: u32,
        grace_ms: u64,
        autopsy: bool,
    },
    /// Write down how an engine ended, for whoever looks into it.
    SaveCrash(CrashRecord),
    /// Sample the GPUs now.
    SampleGpus,
    /// Write to the state directory what cannot be observed again in this boot.
    RememberGpus(GpuMemo),
    /// Write down for the next run how long nobody has counted on this VM.
    RememberDeadman(DeadmanMemo),
    /// End this machine; nothing runs on it that anybody waits for.
    PowerOff {
        reason: String,
    },
    SetEdge(EdgeMode),
    /// Hand streams of the own engine that can go on elsewhere to peers, now.
    HandOver,
    /// Tell the source of a notice that its event may begin: nothing is left here that it could break.
    AcknowledgeNotice {
        source: String,
        id: String,
    },
    /// Write to the object store, if there is one, what a node in this one's place would go on with.
    Checkpoint {
        occasion: Occasion,
        /// `None` of a gateway.
        assignment: Option<Assignment>,
        model_digest: Option<String>,
    },
    /// Say what the verified files of an attempt are; ends in `ModelKnown`.
    NameModel {
        attempt: u32,
        model: ModelSpec,
    },
    /// Read back what this node left there, and go on with it; said again when it is gone.
    Restore {
        from: NodeId,
        is_gone: bool,
    },
    /// End the process with this code, links closed in order.
    Exit {
        code: u8,
        reason: String,
    },
    /// For the log: something that a person may want to prevent.
    Warn {
        what: String,
        why: String,
    },
    /// For the log: a decision, with what it rests on.
    Decided {
        what: String,
        why: String,
    },
}
