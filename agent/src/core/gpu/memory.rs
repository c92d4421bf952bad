//! What a later run of the agent in the same boot must know and could not find out.

use cic_common::gpu::PciAddress;
use serde::{Deserialize, Serialize};

use super::mark::Mark;

/// One GPU that was known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedGpu {
    /// `None` when it was never sampled.
    pub uuid: Option<String>,
    pub pci: Option<PciAddress>,
    pub marks: Vec<Mark>,
}

/// The GPUs that were known, so that a lost one is missed, and the marks that no sample shows. The shell keeps it with
/// the boot id and drops it after a reboot, which is the way back of every mark.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemory {
    pub gpus: Vec<RememberedGpu>,
}
