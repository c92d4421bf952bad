//! Whether a node's words agree: each report with its own digest, and the two paths with each other.
//!
//! A digest that comes out differently here means that agent and controller read a report differently; two digests of
//! one version mean that a path brought what the node did not say. Either is an alarm for people and never evidence:
//! nothing is routed out or replaced for it.

use cic_common::id::Incarnation;
use cic_common::report::StateDigest;

/// The way by which a report came. A hello comes by push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Push,
    Poll,
}

/// An alarm, with its kind in the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Discord {
    pub(super) kind: &'static str,
    pub(super) text: String,
}

/// What the paths brought in the node's current incarnation. Holds the last word of each and nothing older: reports
/// of different versions were made at different moments and say nothing about each other.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    incarnation: Incarnation,
    push: Brought,
    poll: Brought,
    /// Highest version whose two digests were told of. Version 0 is that of an agent that does not count.
    told_version: u64,
}

#[derive(Debug, Default)]
struct Brought {
    last: Option<StateDigest>,
    is_mismatch_told: bool,
}

impl Agreement {
    /// Takes in the state that a report names, with the digest computed from that report's content here.
    pub(super) fn hear(
        &mut self,
        incarnation: Incarnation,
        path: Path,
        state: StateDigest,
        computed: u64,
    ) -> [Option<Discord>; 2] {
        if self.incarnation != incarnation {
            *self = Self { incarnation, ..Self::default() };
        }
        let (brought, other, way) = match path {
            Path::Push => (&mut self.push, &self.poll, "a heartbeat"),
            Path::Poll => (&mut self.poll, &self.push, "a poll's answer"),
        };
        brought.last = Some(state);
        let is_mismatch = state.digest != computed;
        let mismatch = (is_mismatch && !brought.is_mismatch_told).then(|| Discord {
            kind: "digest-mismatch",
            text: format!(
                "the report does not match its own digest: agent and controller disagree on what a report means \
                 ({way}, version {}: {:016x}, here {computed:016x})",
                state.version, state.digest
            ),
        });
        brought.is_mismatch_told |= is_mismatch;
        let differing =
            other.last.filter(|other| other.version == state.version && other.digest != state.digest);
        let disagreement = differing.filter(|_| state.version > self.told_version).map(|other| Discord {
            kind: "paths-disagree",
            text: format!(
                "heartbeat and poll brought different states of version {}: {way} {:016x}, the other path {:016x}",
                state.version, state.digest, other.digest
            ),
        });
        if disagreement.is_some() {
            self.told_version = state.version;
        }
        [mismatch, disagreement]
    }
}

#[cfg(test)]
mod tests {
    use super::Path::{Poll, Push};
    use super::*;

    /// The kinds of alarm that a row of (incarnation, path, version, digest, digest computed here) raises.
    fn alarms(words: &[(u64, Path, u64, u64, u64)]) -> Vec<&'static str> {
        let mut agreement = Agreement::default();
        let hear = |&(incarnation, path, version, digest, computed): &(u64, Path, u64, u64, u64)| {
            agreement.hear(Incarnation(incarnation), path, StateDigest { version, digest }, computed)
        };
        words.iter().flat_map(hear).flatten().map(|discord| discord.kind).collect()
    }

    #[test]
    fn the_same_state_by_both_paths_is_silence() {
        assert!(alarms(&[(1, Push, 4, 7, 7), (1, Poll, 4, 7, 7), (1, Push, 4, 7, 7)]).is_empty());
    }

    #[test]
    fn different_versions_were_taken_at_different_moments_and_are_silence() {
        assert!(alarms(&[(1, Push, 5, 8, 8), (1, Poll, 4, 7, 7), (1, Push, 6, 9, 9)]).is_empty());
        assert!(alarms(&[(1, Push, 5, 8, 8), (2, Poll, 5, 7, 7)]).is_empty(), "another incarnation");
    }

    #[test]
    fn two_digests_of_one_version_are_one_alarm() {
        let words = [(1, Push, 4, 7, 7), (1, Poll, 4, 8, 8), (1, Push, 4, 7, 7), (1, Poll, 4, 8, 8)];
        assert_eq!(alarms(&words), ["paths-disagree"]);
        let later = [(1, Push, 4, 7, 7), (1, Poll, 4, 8, 8), (1, Push, 5, 1, 1), (1, Poll, 5, 2, 2)];
        assert_eq!(alarms(&later), ["paths-disagree"; 2], "each version anew");
    }

    #[test]
    fn an_agent_that_does_not_count_its_states_cannot_disagree_with_itself() {
        assert!(alarms(&[(1, Push, 0, 7, 7), (1, Poll, 0, 8, 8)]).is_empty());
    }

    #[test]
    fn a_report_that_is_not_what_its_digest_says_is_one_alarm_a_path_and_incarnation() {
        let words = [(1, Push, 0, 7, 9), (1, Push, 3, 6, 9), (1, Poll, 3, 6, 9), (1, Poll, 4, 6, 9)];
        assert_eq!(alarms(&words), ["digest-mismatch"; 2]);
        let again = [(1, Push, 1, 7, 9), (2, Push, 1, 7, 9), (2, Push, 2, 5, 5), (2, Push, 3, 7, 9)];
        assert_eq!(alarms(&again), ["digest-mismatch"; 2]);
    }
}
