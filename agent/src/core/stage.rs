//! Where the agent stands, with what that stage needs to know.

use cic_common::report::{EngineState, Phase};
use cic_common::time::Mono;

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

/// ```text
/// Idle -> Mounting -> Verifying -> Starting -> Loading <-> Serving -> Draining -> Stopping -> Stopped
///            ^------------ Waiting <--------------'------------'          Stopping{Retry} -> Waiting
/// Idle -> Loading (adopted)         Idle -> Passing (gateway) -> Draining -> Stopped        (any) -> Failed
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Idle,
    Mounting {
        attempt: u32,
    },
    Verifying {
        attempt: u32,
    },
    Starting {
        attempt: u32,
    },
    Loading {
        pid: u32,
        since: Mono,
        probe: Probe,
    },
    Serving {
        pid: u32,
        failures: u32,
        probe: Probe,
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
        /// The edge was asked since the drain began: what it said before is of another time.
        is_counted: bool,
        then: After,
        keep_engine: bool,
    },
    /// The engine was told to end; one that has not by `until` survived SIGKILL.
    Stopping {
        pid: u32,
        then: After,
        until: Mono,
    },
    /// The agent ends and its node goes on: the next run adopts the engine.
    Exiting,
    /// `by_notice`: starts anew when the notice is lifted.
    Stopped {
        by_notice: bool,
    },
    Failed,
}

impl Stage {
    pub(super) fn phase(&self) -> Phase {
        match self {
            Self::Idle => Phase::Booting,
            Self::Mounting { .. } => Phase::Mounting,
            Self::Verifying { .. } => Phase::Verifying,
            Self::Starting { .. } | Self::Loading { .. } => Phase::Loading,
            Self::Serving { .. } | Self::Passing => Phase::Serving,
            Self::Waiting { phase, .. } => *phase,
            Self::Draining { .. } => Phase::Draining,
            Self::Stopping { then: After::Retry | After::Again, .. } => Phase::Loading,
            Self::Stopping { then: After::Rest | After::Leave | After::Exit, .. } => Phase::Draining,
            Self::Exiting => Phase::Draining,
            Self::Stopped { .. } => Phase::Stopped,
            Self::Failed => Phase::Failed,
        }
    }

    /// The engine process this stage is about.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Loading { pid, .. } | Self::Serving { pid, .. } | Self::Stopping { pid, .. } => Some(*pid),
            Self::Draining { pid, .. } => *pid,
            Self::Idle
            | Self::Mounting { .. }
            | Self::Verifying { .. }
            | Self::Starting { .. }
            | Self::Passing
            | Self::Waiting { .. }
            | Self::Exiting
            | Self::Stopped { .. }
            | Self::Failed => None,
        }
    }

    pub(super) fn engine_state(&self, was_ready: bool) -> EngineState {
        match self {
            Self::Idle | Self::Mounting { .. } | Self::Verifying { .. } | Self::Passing => {
                EngineState::Absent
            }
            Self::Starting { .. } => EngineState::Starting,
            Self::Loading { .. } if was_ready => EngineState::Unready,
            Self::Loading { .. } => EngineState::Starting,
            Self::Serving { .. } => EngineState::Ready,
            Self::Draining { pid: Some(_), .. } => EngineState::Ready,
            Self::Draining { pid: None, .. } | Self::Exiting => EngineState::Absent,
            Self::Stopping { .. } => EngineState::Stopping,
            Self::Waiting { .. } | Self::Stopped { .. } | Self::Failed => EngineState::Exited,
        }
    }
}
