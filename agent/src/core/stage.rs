//! Where the agent stands, with what that stage needs to know.

use cic_common::report::{EngineState, Phase};
use cic_common::time::Mono;

use super::checkpoint::LastWord;
use super::gate::Gate;
use super::progress::Progress;

/// When to look at the engine next, or since when an answer is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    Due(Mono),
    Asked(Mono),
}

/// What follows once the edge is empty or the engine has ended; later ones are more final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum After {
    /// Try again after the backoff.
    Retry,
    /// The notice was lifted while the engine was being stopped: start anew once it has ended.
    Again,
    /// A notice asked: rest in Stopped, and start anew if it is lifted.
    Leave,
    /// An operator or the controller asked: rest in Stopped for good.
    Rest,
    /// End the agent.
    Exit,
}

/// Whether a failure can pass, and what has to happen first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heal {
    /// By trying again after a wait.
    Retry,
    /// Not here: a person or another node.
    Never,
    /// Once the memory of the GPUs is free.
    GpuFree,
    /// Once the GPUs are sound.
    GpuSound,
}

/// What follows once it is proven that nothing of an engine is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Fail { reason: String, heal: Heal },
    Then(After),
}

/// ```text
/// Idle -> Mounting <-> Fetching -> Verifying -> Checking -> Starting -> Loading <-> Serving -> Draining -> Stopping
///            ^------------ Waiting <-------------------------'------------'                      |
///                             ^------------------------------------------------- Proving <-------'
/// Idle -> Loading (adopted)   Idle -> Passing (gateway) -> Draining     Proving -> Stopped    (any) -> Failed
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Idle,
    Mounting {
        attempt: u32,
    },
    /// Its directory is being filled.
    Fetching {
        attempt: u32,
    },
    Verifying {
        attempt: u32,
    },
    /// The first word on the GPUs is awaited until `until`; then flags, memory and driver are looked at.
    Checking {
        attempt: u32,
        is_asked: bool,
        until: Mono,
    },
    Starting {
        attempt: u32,
    },
    Loading {
        pid: u32,
        probe: Probe,
        gate: Gate,
    },
    Serving {
        pid: u32,
        failures: u32,
        probe: Probe,
        progress: Progress,
    },
    /// A gateway: serves others' engines.
    Passing,
    /// Between tries; `phase` is the one that failed.
    Waiting {
        phase: Phase,
        until: Mono,
    },
    /// No new requests; running ones finish until `until`.
    Draining {
        pid: Option<u32>,
        until: Mono,
        poll: Mono,
        /// When streams that can go on elsewhere are handed over; `None` once they were.
        hand_over: Option<Mono>,
        /// The edge was asked since the drain began: what it said before is of another time.
        is_counted: bool,
        then: After,
        keep_engine: bool,
        last_word: LastWord,
    },
    /// The engine was told to end; one that has not by `until` survived SIGKILL.
    Stopping {
        pid: u32,
        then: After,
        until: Mono,
    },
    /// The engine has ended; the GPUs' memory has to show it by `until`.
    Proving {
        ended_at: Mono,
        ask_at: Mono,
        until: Mono,
        next: Next,
        /// What was said before the wait.
        why: String,
    },
    /// The agent ends and its node goes on: the next run adopts the engine.
    Exiting,
    /// `by_notice`: starts anew when the notice is lifted.
    Stopped {
        by_notice: bool,
    },
    Failed {
        heal: Heal,
    },
}

impl Stage {
    pub(super) fn phase(&self) -> Phase {
        match self {
            Self::Idle => Phase::Booting,
            Self::Mounting { .. } | Self::Fetching { .. } => Phase::Mounting,
            Self::Verifying { .. } | Self::Checking { .. } => Phase::Verifying,
            Self::Starting { .. } | Self::Loading { .. } => Phase::Loading,
            Self::Serving { .. } | Self::Passing => Phase::Serving,
            Self::Waiting { phase, .. } => *phase,
            Self::Draining { .. } => Phase::Draining,
            Self::Stopping { then, .. } | Self::Proving { next: Next::Then(then), .. } => match then {
                After::Retry | After::Again => Phase::Loading,
                After::Rest | After::Leave | After::Exit => Phase::Draining,
            },
            Self::Proving { next: Next::Fail { .. }, .. } => Phase::Loading,
            Self::Exiting => Phase::Draining,
            Self::Stopped { .. } => Phase::Stopped,
            Self::Failed { .. } => Phase::Failed,
        }
    }

    /// Whether the node is on its way out, or out.
    pub(super) fn is_leaving(&self) -> bool {
        match self {
            Self::Draining { .. } | Self::Exiting | Self::Stopped { .. } => true,
            Self::Stopping { then, .. } | Self::Proving { next: Next::Then(then), .. } => match then {
                After::Retry | After::Again => false,
                After::Rest | After::Leave | After::Exit => true,
            },
            Self::Idle
            | Self::Mounting { .. }
            | Self::Fetching { .. }
            | Self::Verifying { .. }
            | Self::Checking { .. }
            | Self::Starting { .. }
            | Self::Loading { .. }
            | Self::Serving { .. }
            | Self::Passing
            | Self::Waiting { .. }
            | Self::Proving { next: Next::Fail { .. }, .. }
            | Self::Failed { .. } => false,
        }
    }

    /// Whether a step on the model's files is under way.
    pub(super) fn is_on_files(&self) -> bool {
        matches!(self, Self::Mounting { .. } | Self::Fetching { .. } | Self::Verifying { .. })
    }

    /// Whether an engine is about to read the model's files, or does.
    pub(super) fn is_coming_up(&self) -> bool {
        matches!(self, Self::Checking { .. } | Self::Starting { .. } | Self::Loading { .. })
    }

    /// The engine process this stage is about.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Loading { pid, .. } | Self::Serving { pid, .. } | Self::Stopping { pid, .. } => Some(*pid),
            Self::Draining { pid, .. } => *pid,
            Self::Idle
            | Self::Mounting { .. }
            | Self::Fetching { .. }
            | Self::Verifying { .. }
            | Self::Checking { .. }
            | Self::Starting { .. }
            | Self::Passing
            | Self::Waiting { .. }
            | Self::Proving { .. }
            | Self::Exiting
            | Self::Stopped { .. }
            | Self::Failed { .. } => None,
        }
    }

    pub(super) fn engine_state(&self, was_ready: bool) -> EngineState {
        match self {
            Self::Idle
            | Self::Mounting { .. }
            | Self::Fetching { .. }
            | Self::Verifying { .. }
            | Self::Checking { .. }
            | Self::Passing => EngineState::Absent,
            Self::Starting { .. } => EngineState::Starting,
            Self::Loading { .. } if was_ready => EngineState::Unready,
            Self::Loading { .. } => EngineState::Starting,
            Self::Serving { progress, .. } if progress.is_stalled() => EngineState::Stalled,
            Self::Serving { .. } => EngineState::Ready,
            Self::Draining { pid: Some(_), .. } => EngineState::Ready,
            Self::Draining { pid: None, .. } | Self::Exiting => EngineState::Absent,
            Self::Stopping { .. } => EngineState::Stopping,
            Self::Waiting { .. } | Self::Proving { .. } | Self::Stopped { .. } | Self::Failed { .. } => {
                EngineState::Exited
            }
        }
    }
}
