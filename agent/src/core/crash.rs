//! Why an engine failed, by what it left behind.
//!
//! The last line of a vLLM says little: its API server ends with `Engine core initialization failed` whatever the
//! cause, exits with 0 after its core was killed, and names a missing path a bad repository. The cause stands further
//! up, or elsewhere: in the kernel's log, or with the GPUs.

use std::fmt;

use cic_common::gpu::GpuAction;
use cic_common::id::DeploymentName;
use serde::{Deserialize, Serialize};

use super::stage::Heal;

/// Longest quotation of the engine's own words in a reason.
const QUOTE_CHARS_MAX: usize = 300;

/// What made an engine fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CrashCause {
    /// The command line or a value on it is not one of this vLLM's.
    BadFlag,
    /// A file of the model, or all of it, is not there.
    MissingShard,
    /// A file of the model is not what it should be.
    CorruptShard,
    OomGpu,
    OomHost,
    PortInUse,
    /// A GPU fault of this code came in the engine's time.
    Xid {
        code: u32,
    },
    Unknown,
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadFlag => f.write_str("bad flag"),
            Self::MissingShard => f.write_str("missing model file"),
            Self::CorruptShard => f.write_str("corrupt model file"),
            Self::OomGpu => f.write_str("out of GPU memory"),
            Self::OomHost => f.write_str("out of host memory"),
            Self::PortInUse => f.write_str("port in use"),
            Self::Xid { code } => write!(f, "GPU fault XID {code}"),
            Self::Unknown => f.write_str("unknown cause"),
        }
    }
}

/// What is known when an engine has ended, beside its own words.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Circumstances {
    /// It had been ready, so its command line and its files are good.
    pub(super) was_ready: bool,
    /// What the kernel said when it killed a process of this engine for want of memory.
    pub(super) oom_kills: Vec<String>,
    /// Faults of the GPUs since this engine was started.
    pub(super) xids: Vec<(u32, GpuAction)>,
}

/// What made it fail, and the words that say so.
pub(super) fn classify(log_tail: &[String], circumstances: &Circumstances) -> (CrashCause, Option<String>) {
    // Ignored and merely reported codes explain no end: 43 and 45 follow from it.
    let grave = circumstances.xids.iter().filter(|(_, action)| *action >= GpuAction::RestartApp);
    if let Some((code, action)) = grave.max_by_key(|(_, action)| *action) {
        return (CrashCause::Xid { code: *code }, Some(format!("XID {code}: {action}")));
    }
    if let Some(text) = circumstances.oom_kills.first() {
        return (CrashCause::OomHost, Some(text.clone()));
    }
    let rows = ROWS.iter().filter(|row| !(row.only_at_start && circumstances.was_ready));
    for row in rows {
        // The first line that says it: what follows are the processes above, each with its own words for it.
        if let Some(line) = log_tail.iter().find(|line| row.marks.iter().any(|mark| line.contains(mark))) {
            return (row.cause.clone(), Some(quote(line)));
        }
    }
    (CrashCause::Unknown, None)
}

impl CrashCause {
    /// Whether another start of the same engine on the same node can end otherwise.
    pub(super) fn heal(&self, was_ready: bool) -> Heal {
        match self {
            Self::BadFlag | Self::MissingShard | Self::CorruptShard => Heal::Never,
            // None is started on memory that others hold: with the whole GPU to itself it would need the same again. One
            // that had loaded met a rare peak.
            Self::OomGpu if !was_ready => Heal::Never,
            Self::OomGpu | Self::OomHost | Self::PortInUse | Self::Xid { .. } | Self::Unknown => Heal::Retry,
        }
    }
}

struct Row {
    cause: CrashCause,
    /// An engine that was ready once has passed this.
    only_at_start: bool,
    /// Any of these in a line. From vLLM 0.32, torch, safetensors and glibc.
    marks: &'static [&'static str],
}

/// In the order of looking: what explains the others first.
const ROWS: [Row; 6] = [
    Row {
        cause: CrashCause::OomGpu,
        only_at_start: false,
        marks: &[
            "CUDA out of memory",
            "torch.OutOfMemoryError",
            "torch.cuda.OutOfMemoryError",
            "No available memory for the cache blocks",
            "is less than desired GPU memory utilization",
            "KV cache is needed, which is larger than the available KV cache memory",
            "CUDA error: out of memory",
        ],
    },
    Row {
        cause: CrashCause::OomHost,
        only_at_start: false,
        marks: &[
            "MemoryError",
            "Cannot allocate memory",
            "DefaultCPUAllocator: can't allocate memory",
            "on kv cache allocation is less than requested memory for kv",
            "No space left on device: '/dev/shm",
        ],
    },
    Row {
        cause: CrashCause::PortInUse,
        only_at_start: true,
        marks: &["Address already in use", "error while attempting to bind on address"],
    },
    Row {
        cause: CrashCause::BadFlag,
        only_at_start: true,
        marks: &[
            "error: unrecognized arguments:",
            "error: argument ",
            "error: ambiguous option:",
            "error: the following arguments are required:",
            "ValueError: Load format `",
        ],
    },
    Row {
        cause: CrashCause::CorruptShard,
        only_at_start: true,
        marks: &[
            "SafetensorError",
            "HeaderTooLarge",
            "MetadataIncompleteBuffer",
            "InvalidHeaderDeserialization",
        ],
    },
    Row {
        cause: CrashCause::MissingShard,
        only_at_start: true,
        marks: &[
            "Weight files referenced in index but missing",
            "Cannot find any model weights",
            "HFValidationError: Repo id must be",
            "does not appear to have a file named",
        ],
    },
];

/// The part of a line that a person wants: without process, time and place.
fn quote(line: &str) -> String {
    let text =
        line.rsplit_once(".py:").and_then(|(_, rest)| rest.split_once("] ")).map_or(line, |(_, text)| text);
    text.trim().chars().take(QUOTE_CHARS_MAX).collect()
}

/// Everything about one engine's end, written down for whoever looks into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashRecord {
    pub pid: u32,
    pub deployment: Option<DeploymentName>,
    /// For people: `exit code 1`, `signal 9`.
    pub how: String,
    pub cause: CrashCause,
    /// The decision that followed, or preceded it.
    pub reason: String,
    pub was_ready: bool,
    /// From its start, or its adoption, to its end.
    pub ran_for_ms: u64,
    /// What the kernel's OOM killer said of its processes.
    pub oom_kills: Vec<String>,
    /// GPU faults in its time, each with its action.
    pub xids: Vec<String>,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
    /// Where its threads hung in the kernel, when it was killed for not moving.
    pub stacks: Vec<String>,
    /// Processes of it that outlived SIGKILL.
    pub left: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vLLM 0.32.0 for the CPU wrote it, paths shortened.
    macro_rules! real {
        ($name:literal) => {
            include_str!(concat!("../../tests/fixtures/vllm-0.32.0-cpu/", $name, ".log"))
        };
    }

    fn tail(text: &str) -> Vec<String> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(200)..].to_vec()
    }

    #[test]
    fn what_the_real_engine_wrote_is_traced_to_its_cause() {
        for (text, cause, words) in [
            (real!("bad-flag"), CrashCause::BadFlag, "--engine-use-ray --disable-log-requests"),
            (real!("bad-value"), CrashCause::BadFlag, "argument --dtype: invalid choice: 'float99'"),
            (real!("bad-load-format"), CrashCause::BadFlag, "Load format `nosuch` is not supported"),
            (real!("missing-path"), CrashCause::MissingShard, "'/nowhere/model'"),
            (real!("missing-shard"), CrashCause::MissingShard, "model-00001-of-00004.safetensors"),
            (real!("truncated-shard"), CrashCause::CorruptShard, "incomplete metadata"),
            (real!("port-in-use"), CrashCause::PortInUse, "Address already in use"),
            (real!("host-memory"), CrashCause::OomHost, "4000.0 GiB"),
        ] {
            let (found, quotation) = classify(&tail(text), &Circumstances::default());
            assert_eq!(found, cause, "{quotation:?}");
            assert!(quotation.as_ref().is_some_and(|quotation| quotation.contains(words)), "{quotation:?}");
            assert!(!quotation.unwrap_or_default().contains(" pid="), "the prefix is not a person's concern");
        }
    }

    #[test]
    fn out_of_gpu_memory_is_known_by_torchs_and_vllms_words() {
        for line in [
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB",
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "ValueError: Free memory on device (3.1/79.1 GiB) on startup is less than desired GPU memory utilization",
        ] {
            let (cause, _) = classify(&[line.to_owned()], &Circumstances::default());
            assert_eq!(cause, CrashCause::OomGpu);
            assert_eq!(cause.heal(false), Heal::Never);
            assert_eq!(cause.heal(true), Heal::Retry, "it had loaded");
        }
    }

    #[test]
    fn a_fault_of_the_gpu_explains_more_than_the_log_and_a_symptom_explains_nothing() {
        let log = ["torch.OutOfMemoryError: CUDA out of memory".to_owned()];
        let with = |xids: &[(u32, GpuAction)]| Circumstances { xids: xids.to_vec(), ..Default::default() };
        let (cause, _) = classify(&log, &with(&[(13, GpuAction::RestartApp), (95, GpuAction::ResetGpu)]));
        assert_eq!(cause, CrashCause::Xid { code: 95 });
        let (cause, _) = classify(&log, &with(&[(43, GpuAction::Ignore), (45, GpuAction::Report)]));
        assert_eq!(cause, CrashCause::OomGpu);
    }

    #[test]
    fn the_kernels_oom_killer_is_believed_before_the_log() {
        let oom_kills = vec!["Out of memory: Killed process 7 (VLLM::Worker)".to_owned()];
        let circumstances = Circumstances { oom_kills, ..Default::default() };
        let (cause, quotation) = classify(&tail(real!("missing-shard")), &circumstances);
        assert_eq!(cause, CrashCause::OomHost);
        assert!(quotation.is_some_and(|text| text.contains("Killed process 7")));
    }

    #[test]
    fn an_engine_that_was_ready_did_not_fail_by_its_command_line() {
        let circumstances = Circumstances { was_ready: true, ..Default::default() };
        let (cause, _) = classify(&tail(real!("bad-flag")), &circumstances);
        assert_eq!(cause, CrashCause::Unknown);
    }

    #[test]
    fn causes_that_a_restart_cannot_heal_are_not_retried() {
        for (cause, heal) in [
            (CrashCause::BadFlag, Heal::Never),
            (CrashCause::MissingShard, Heal::Never),
            (CrashCause::CorruptShard, Heal::Never),
            (CrashCause::OomHost, Heal::Retry),
            (CrashCause::PortInUse, Heal::Retry),
            (CrashCause::Xid { code: 79 }, Heal::Retry),
            (CrashCause::Unknown, Heal::Retry),
        ] {
            assert_eq!(cause.heal(false), heal, "{cause}");
        }
    }
}
