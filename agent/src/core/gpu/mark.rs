//! A mark on a GPU: what is wrong, what it asks for, and the way back.

use std::time::Duration;

use cic_common::gpu::{GpuAction, XidSeen};
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

use super::catalogue::{Rule, entry_of};
use super::policy::Resolution;

/// A reason is cut to so many characters: those of all GPUs share a heartbeat.
const WHY_CHARS_MAX: usize = 80;

/// What made a mark. A GPU has at most one mark of a cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Xid {
        code: u32,
        pid: Option<u32>,
    },
    /// The driver's own word: field 230, or the text of XID 154.
    Recovery,
    /// The driver counts it no more, or calls it lost.
    Lost,
    RemapFailed,
    RemapPending,
    PagesPending,
    EccUncorrected,
    SlowedByHeat,
    SlowedByPower,
    NarrowLink,
}

/// What ends a mark. A reboot ends every mark: memory of another boot is not restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WayBack {
    /// A new engine process, a token of one that was in doubt, or the end of the process that the fault was charged to.
    AppRestarted {
        pid: Option<u32>,
    },
    /// A reset: the GPU is lost and comes back, or the driver says "none".
    GpuReset,
    /// The driver's "none" stands for it; a reset does not.
    VmRebooted,
    /// The GPU is lost and comes back, or the driver says "none".
    GpuBack,
    /// The driver says "none".
    DriverSaysNone,
    /// A sample in which the driver reports it no more.
    NotReported,
    /// Nothing of the kind for so long.
    Quiet {
        for_ms: u64,
    },
    Operator,
}

/// What can be observed that ends marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relief {
    EngineStarted,
    /// An engine that was in doubt works.
    EngineProved,
    /// A process holds no memory of the GPU any more.
    ProcessGone(u32),
    /// The GPU was lost and is back.
    CameBack,
    /// The driver says that nothing is to be done.
    DriverSaidNone,
}

impl WayBack {
    /// For people, after the reason.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::AppRestarted { pid: None } => "until the engine was started anew".to_owned(),
            Self::AppRestarted { pid: Some(pid) } => {
                format!("until the engine was started anew or pid {pid} is gone")
            }
            Self::GpuReset => "until the GPU was reset".to_owned(),
            Self::VmRebooted => "until the VM was rebooted".to_owned(),
            Self::GpuBack => "until the GPU is back".to_owned(),
            Self::DriverSaysNone => "until the driver says none".to_owned(),
            Self::NotReported => "until the driver reports it no more".to_owned(),
            Self::Quiet { for_ms } => format!("until {} s without another", for_ms / 1000),
            Self::Operator => "until an operator clears it".to_owned(),
        }
    }

    /// The process whose end ends the mark.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::AppRestarted { pid } => *pid,
            Self::GpuReset
            | Self::VmRebooted
            | Self::GpuBack
            | Self::DriverSaysNone
            | Self::NotReported
            | Self::Quiet { .. }
            | Self::Operator => None,
        }
    }

    pub(super) fn quiet(span: Duration) -> Self {
        Self::Quiet { for_ms: u64::try_from(span.as_millis()).unwrap_or(u64::MAX) }
    }

    pub(super) fn is_met_by(&self, relief: Relief) -> bool {
        match self {
            Self::AppRestarted { pid } => match relief {
                Relief::EngineStarted | Relief::EngineProved | Relief::CameBack => true,
                Relief::ProcessGone(gone) => *pid == Some(gone),
                Relief::DriverSaidNone => false,
            },
            Self::GpuReset | Self::GpuBack => match relief {
                Relief::CameBack | Relief::DriverSaidNone => true,
                Relief::EngineStarted | Relief::EngineProved | Relief::ProcessGone(_) => false,
            },
            Self::VmRebooted | Self::DriverSaysNone => match relief {
                Relief::DriverSaidNone => true,
                Relief::EngineStarted | Relief::EngineProved | Relief::ProcessGone(_) | Relief::CameBack => {
                    false
                }
            },
            Self::NotReported | Self::Quiet { .. } | Self::Operator => false,
        }
    }

    fn after(action: GpuAction, pid: Option<u32>, note_for: Duration) -> Option<Self> {
        match action {
            GpuAction::Ignore => None,
            GpuAction::Report => Some(Self::quiet(note_for)),
            GpuAction::ContactSupport => Some(Self::Operator),
            GpuAction::RestartApp => Some(Self::AppRestarted { pid }),
            GpuAction::ResetGpu => Some(Self::GpuReset),
            GpuAction::RestartVm => Some(Self::VmRebooted),
            GpuAction::ReplaceNode => Some(Self::GpuBack),
        }
    }
}

/// One thing that is wrong with a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub cause: Cause,
    pub action: GpuAction,
    /// For people, without the way back.
    pub why: String,
    pub way_back: WayBack,
    /// An operator accepted it while it lasts.
    pub is_waived: bool,
    /// When it was last made, on this process's clock.
    #[serde(skip)]
    pub(super) at: Mono,
}

impl Mark {
    pub(super) fn new(now: Mono, cause: Cause, action: GpuAction, why: String, way_back: WayBack) -> Self {
        let why = why.chars().take(WHY_CHARS_MAX).collect();
        Self { cause, action, why, way_back, is_waived: false, at: now }
    }

    /// The mark that an XID leaves. `None` for what is ignored, for a symptom, whose cause has its own mark, and for
    /// 154, which is the driver's word.
    pub(super) fn of_xid(
        now: Mono,
        seen: &XidSeen,
        resolution: &Resolution,
        note_for: Duration,
    ) -> Option<Self> {
        match entry_of(seen.code).map(|entry| entry.rule) {
            Some(Rule::Symptom | Rule::AsRecovery) => return None,
            Some(
                Rule::Always(_)
                | Rule::DoubleBitError
                | Rule::NvlinkRegisters
                | Rule::Nvlink5
                | Rule::Person(_)
                | Rule::NoneGiven,
            )
            | None => {}
        }
        let way_back = WayBack::after(resolution.action, seen.pid, note_for)?;
        Some(Self::new(now, cause_of(seen), resolution.action, resolution.why.clone(), way_back))
    }

    /// Whether the GPU must not be worked with because of it.
    pub(super) fn is_unhealthy(&self) -> bool {
        !self.is_waived && (self.action.condemns() || self.action == GpuAction::RestartApp)
    }

    /// Whether a later run of the agent could not find it out by itself.
    pub(super) fn is_remembered(&self) -> bool {
        match self.cause {
            Cause::Xid { .. } | Cause::Recovery => true,
            Cause::Lost
            | Cause::RemapFailed
            | Cause::RemapPending
            | Cause::PagesPending
            | Cause::EccUncorrected
            | Cause::SlowedByHeat
            | Cause::SlowedByPower
            | Cause::NarrowLink => self.is_waived,
        }
    }

    /// As it is remembered: it does not change by being made again.
    pub(super) fn timeless(&self) -> Self {
        Self { at: Mono::default(), ..self.clone() }
    }

    /// Whether an operator's word ends it for good; what is seen anew with every sample can only be waived.
    pub(super) fn can_be_cleared(&self) -> bool {
        match self.cause {
            Cause::Xid { .. } => true,
            Cause::Recovery
            | Cause::Lost
            | Cause::RemapFailed
            | Cause::RemapPending
            | Cause::PagesPending
            | Cause::EccUncorrected
            | Cause::SlowedByHeat
            | Cause::SlowedByPower
            | Cause::NarrowLink => false,
        }
    }

    pub(super) fn text(&self) -> String {
        if self.is_waived {
            return format!("{}, accepted by an operator", self.why);
        }
        format!("{}, {}", self.why, self.way_back.text())
    }
}

/// The cause that an XID's mark has.
pub(super) fn cause_of(seen: &XidSeen) -> Cause {
    Cause::Xid { code: seen.code, pid: seen.pid }
}
