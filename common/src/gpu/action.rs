//! What is to be done about a fault of a GPU.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The immediate action that NVIDIA's XID catalogue gives for a code; later ones are graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuAction {
    /// Nothing is to be done.
    Ignore,
    /// Told to people, with no act of ours: a code that the catalogue does not have, or has no action for.
    Report,
    /// A person is to ask NVIDIA or the cloud; nothing automatic helps.
    ContactSupport,
    /// The process that used the GPU is to be started anew.
    RestartApp,
    /// The GPU is to be reset, which needs everything on it to be stopped.
    ResetGpu,
    /// The virtual machine is to be booted anew.
    RestartVm,
    /// The machine is to be replaced.
    ReplaceNode,
}

impl GpuAction {
    pub const ALL: [Self; 7] = [
        Self::Ignore,
        Self::Report,
        Self::ContactSupport,
        Self::RestartApp,
        Self::ResetGpu,
        Self::RestartVm,
        Self::ReplaceNode,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Report => "report",
            Self::ContactSupport => "contact support",
            Self::RestartApp => "restart the application",
            Self::ResetGpu => "reset the GPU",
            Self::RestartVm => "restart the VM",
            Self::ReplaceNode => "replace the node",
        }
    }

    /// Whether the GPU cannot be worked with until something outside the engine was done about it.
    #[must_use]
    pub fn condemns(self) -> bool {
        match self {
            Self::ResetGpu | Self::RestartVm | Self::ReplaceNode => true,
            Self::Ignore | Self::Report | Self::ContactSupport | Self::RestartApp => false,
        }
    }
}

impl fmt::Display for GpuAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The driver's own word on what a GPU needs: `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION` (field 230), and the text of
/// XID 154.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryAction {
    None,
    GpuReset,
    NodeReboot,
    DrainPeerToPeer,
    DrainAndReset,
    RecoverImex,
    BusReset,
    SystemReboot,
    /// A number that this build does not know.
    Unknown(u32),
}

impl RecoveryAction {
    /// From NVML's number.
    #[must_use]
    pub fn of(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::GpuReset,
            2 => Self::NodeReboot,
            3 => Self::DrainPeerToPeer,
            4 => Self::DrainAndReset,
            5 => Self::RecoverImex,
            6 => Self::BusReset,
            7 => Self::SystemReboot,
            other => Self::Unknown(other),
        }
    }

    /// What it asks for in the words of the catalogue; `None` when it asks for nothing.
    #[must_use]
    pub fn action(self) -> Option<GpuAction> {
        match self {
            Self::None => None,
            Self::GpuReset | Self::DrainAndReset | Self::BusReset => Some(GpuAction::ResetGpu),
            Self::NodeReboot | Self::SystemReboot => Some(GpuAction::RestartVm),
            Self::DrainPeerToPeer | Self::RecoverImex => Some(GpuAction::RestartApp),
            Self::Unknown(_) => Some(GpuAction::Report),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_word_is_read_from_its_number() {
        for (number, action) in [
            (0, None),
            (1, Some(GpuAction::ResetGpu)),
            (2, Some(GpuAction::RestartVm)),
            (4, Some(GpuAction::ResetGpu)),
            (7, Some(GpuAction::RestartVm)),
            (99, Some(GpuAction::Report)),
        ] {
            assert_eq!(RecoveryAction::of(number).action(), action, "{number}");
        }
    }

    #[test]
    fn only_what_the_engine_cannot_mend_condemns() {
        let condemning: Vec<_> = GpuAction::ALL.into_iter().filter(|action| action.condemns()).collect();
        assert_eq!(condemning, [GpuAction::ResetGpu, GpuAction::RestartVm, GpuAction::ReplaceNode]);
    }
}
