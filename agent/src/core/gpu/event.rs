//! What the sources say of the GPUs.

use cic_common::gpu::{GpuInventory, GpuSample, XidSeen, XidSource};
use serde::{Deserialize, Serialize};

/// What the sources say of the GPUs. Plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuEvent {
    /// This machine has no NVIDIA device.
    Absent,
    /// There is a device and nothing can be read of it.
    Blind { reason: String },
    /// A driver call that has not come back for so long.
    Wedged { call: String, for_ms: u64 },
    /// NVML is there.
    Ready(GpuInventory),
    /// All GPUs, as [`cic_common::gpu::ProbeMessage::Sampled`] has them.
    Sampled { is_full: bool, device_count: u32, samples: Vec<GpuSample>, lost: Vec<String> },
    /// One XID from one source.
    Xid(XidSeen),
    /// XIDs may be missed on this path; the other path goes on.
    XidsBlind { source: XidSource, reason: String },
    /// An operator says that a GPU (by uuid; `None`: all) is good again.
    Cleared { gpu: Option<String> },
}
