//! What the probe and the agent say to each other: frames of [`crate::wire::frame`] over the probe's standard
//! output and input.

use serde::{Deserialize, Serialize};

use super::action::RecoveryAction;
use super::sample::{GpuInventory, GpuSample, PciAddress};

/// Who saw an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XidSource {
    /// `nvmlEventSetWait`.
    Nvml,
    /// `/dev/kmsg`.
    Kmsg,
}

/// One XID as one source saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidSeen {
    pub source: XidSource,
    /// `None` when the source does not say which GPU.
    pub pci: Option<PciAddress>,
    pub code: u32,
    /// The process it was charged to.
    pub pid: Option<u32>,
    /// The `intrinfo` word of NVLink 5 codes 144 to 150.
    pub interrupt_info: Option<u32>,
    /// The new recovery action that the text of 154 gives.
    pub recovery: Option<RecoveryAction>,
    /// The line as it was written, for people; empty from NVML.
    pub text: String,
}

/// Why the probe cannot read any GPU. It ends after saying so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ProbeFault {
    #[error("no NVIDIA driver: {cause}")]
    NoDriver { cause: String },
    #[error("driver and NVML library are of different versions: {cause}")]
    VersionMismatch { cause: String },
    #[error("this user may not talk to the driver: {cause}")]
    NoPermission { cause: String },
    #[error("the driver answers with an error: {cause}")]
    Driver { cause: String },
    /// A process that read the GPUs before does not come out of the driver.
    #[error("stuck in the driver: {cause}")]
    Stuck { cause: String },
    /// The lock that keeps probes apart cannot be asked for.
    #[error("no lock for the probe: {cause}")]
    Lock { cause: String },
}

/// Probe to agent, on its standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeMessage {
    /// First message, before anything of the driver is touched: the probe runs.
    Started {
        version: String,
    },
    /// NVML is there. Once, after initialisation.
    Ready {
        inventory: GpuInventory,
    },
    /// A driver call begins; unanswered by the next message within the call deadline it hangs.
    Calling {
        call: String,
    },
    /// All GPUs. `is_full` tells whether the slow fields were read anew; else they are those of the last full one.
    /// `device_count` is what the driver counts now; GPUs that are lost have no sample.
    Sampled {
        is_full: bool,
        device_count: u32,
        samples: Vec<GpuSample>,
        lost: Vec<String>,
    },
    Xid(XidSeen),
    /// Events cannot be waited for (an old driver, or an error that repeats); samples go on.
    EventsBlind {
        reason: String,
    },
    /// Nothing more comes.
    Failed {
        fault: ProbeFault,
    },
}

/// Agent to probe, on its standard input. The end of that stream ends the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeRequest {
    /// Sample now, cheap fields only; also restarts the interval.
    Sample,
}
