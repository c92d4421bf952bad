//! The table: three witnesses in, one belief out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How recent a witness's last good word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    Fresh,
    Stale,
    /// It has not spoken in this controller's time, and has not been shown to be silent either.
    Never,
}

/// What the provider says of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cloud {
    Running,
    /// There and not running.
    Stopped,
    /// A listing that should hold it does not.
    Absent,
    /// Nobody was asked, or the node belongs to no provider.
    Unknown,
    /// The provider's API fails.
    Failing,
}

/// What is concluded about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Belief {
    /// No word yet; its boot grace runs.
    Unknown,
    Alive,
    /// It pushes and does not answer polls.
    SuspectPoll,
    /// It answers polls and does not push.
    SuspectPush,
    /// Neither path answers; the VM may be running.
    Silent,
    /// Neither path answers and the cloud says that the VM is not there.
    Gone,
}

impl Belief {
    /// Whether an edge should send requests to it. Silence of both paths is enough to stop; the rest is not.
    #[must_use]
    pub fn is_routable(self) -> bool {
        match self {
            Self::Alive | Self::SuspectPoll | Self::SuspectPush => true,
            Self::Unknown | Self::Silent | Self::Gone => false,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Alive => "alive",
            Self::SuspectPoll => "suspect (poll path)",
            Self::SuspectPush => "suspect (push path)",
            Self::Silent => "silent",
            Self::Gone => "gone",
        }
    }
}

impl fmt::Display for Belief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The belief that the witnesses support. A node that speaks on either path is never Silent or Gone, whatever
/// the cloud says; "running" alone never makes a node healthy.
#[must_use]
pub fn judge(push: Freshness, poll: Freshness, cloud: Cloud) -> Belief {
    use Cloud::{Absent, Failing, Running, Stopped, Unknown};
    use Freshness::{Fresh, Never, Stale};
    match (push, poll, cloud) {
        (Fresh, Fresh | Never, Running | Stopped | Absent | Unknown | Failing)
        | (Never, Fresh, Running | Stopped | Absent | Unknown | Failing)
        | (Fresh, Stale, Stopped | Absent)
        | (Stale, Fresh, Stopped | Absent) => Belief::Alive,
        (Fresh, Stale, Running | Unknown | Failing) => Belief::SuspectPoll,
        (Stale, Fresh, Running | Unknown | Failing) => Belief::SuspectPush,
        (Stale, Stale | Never, Running | Unknown | Failing) | (Never, Stale, Running | Unknown | Failing) => {
            Belief::Silent
        }
        (Stale | Never, Stale | Never, Stopped | Absent) => Belief::Gone,
        (Never, Never, Running | Unknown | Failing) => Belief::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::Cloud::{Absent, Failing, Running, Stopped, Unknown};
    use super::Freshness::{Fresh, Never, Stale};
    use super::*;

    const PATHS: [Freshness; 3] = [Fresh, Stale, Never];
    const CLOUDS: [Cloud; 5] = [Running, Stopped, Absent, Unknown, Failing];

    fn holds(pushes: &[Freshness], polls: &[Freshness], clouds: &[Cloud], belief: Belief) {
        for &push in pushes {
            for &poll in polls {
                for &cloud in clouds {
                    assert_eq!(
                        judge(push, poll, cloud),
                        belief,
                        "push {push:?}, poll {poll:?}, cloud {cloud:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn both_paths_fresh_is_alive() {
        holds(&[Fresh], &[Fresh], &CLOUDS, Belief::Alive);
    }

    #[test]
    fn a_push_without_poll_is_a_suspect_poll_path() {
        holds(&[Fresh], &[Stale], &[Running, Unknown, Failing], Belief::SuspectPoll);
    }

    #[test]
    fn a_poll_without_push_is_a_suspect_push_path() {
        holds(&[Stale], &[Fresh], &[Running, Unknown, Failing], Belief::SuspectPush);
    }

    #[test]
    fn two_silent_paths_and_a_running_vm_is_silent() {
        holds(&[Stale], &[Stale], &[Running, Unknown], Belief::Silent);
    }

    #[test]
    fn two_silent_paths_and_no_vm_is_gone() {
        holds(&[Stale, Never], &[Stale, Never], &[Stopped, Absent], Belief::Gone);
    }

    #[test]
    fn two_silent_paths_and_a_failing_cloud_is_silent_never_gone() {
        holds(&[Stale], &[Stale], &[Failing], Belief::Silent);
    }

    #[test]
    fn no_word_yet_is_unknown_while_the_cloud_does_not_deny_it() {
        holds(&[Never], &[Never], &[Running, Unknown, Failing], Belief::Unknown);
    }

    #[test]
    fn a_node_that_speaks_is_alive_even_when_the_cloud_denies_it() {
        holds(&[Fresh], &PATHS, &[Stopped, Absent], Belief::Alive);
        holds(&PATHS, &[Fresh], &[Stopped, Absent], Belief::Alive);
    }

    #[test]
    fn a_path_not_tried_yet_counts_neither_for_nor_against() {
        holds(&[Fresh], &[Never], &CLOUDS, Belief::Alive);
        holds(&[Never], &[Fresh], &CLOUDS, Belief::Alive);
        holds(&[Stale], &[Never], &[Running, Unknown, Failing], Belief::Silent);
        holds(&[Never], &[Stale], &[Running, Unknown, Failing], Belief::Silent);
    }

    #[test]
    fn only_a_node_silent_on_both_paths_can_be_gone() {
        for push in PATHS {
            for poll in PATHS {
                for cloud in CLOUDS {
                    let silent = push != Fresh && poll != Fresh;
                    if !silent {
                        assert!(judge(push, poll, cloud).is_routable());
                    }
                }
            }
        }
    }
}
