//! Names of snapshots: their order, and which of them are too old.

use std::fmt;
use std::str::FromStr;

use cic_common::id::Term;

/// `TERM-MILLISECONDS`, each as wide as it gets, so that names sort as their snapshots do.
///
/// The term comes first: no clock has a say in it, and whoever begins anew with an empty database counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SnapshotName {
    pub term: Term,
    /// By the database's clock.
    pub taken_at_ms: u64,
}

/// Digits of the largest number.
const WIDTH: usize = 20;

/// The text is no snapshot's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not read TERM-MILLISECONDS, {WIDTH} digits each")]
pub struct NameError(String);

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0WIDTH$}-{:0WIDTH$}", self.term.0, self.taken_at_ms)
    }
}

impl FromStr for SnapshotName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let number = |digits: &str| {
            let is_right = digits.len() == WIDTH && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| is_right)
        };
        text.split_once('-')
            .and_then(|(term, ms)| Some(Self { term: Term(number(term)?), taken_at_ms: number(ms)? }))
            .ok_or_else(|| NameError(text.to_owned()))
    }
}

/// Those among `names` that a leader of `term` removes, when `keep` are to be left.
///
/// Snapshots of a higher term are not its to remove: they are of a database that was lost, and that this leader's did
/// not come from.
pub(super) fn too_old(names: &[SnapshotName], term: Term, keep: usize) -> Vec<SnapshotName> {
    let mut own: Vec<SnapshotName> = names.iter().copied().filter(|name| name.term <= term).collect();
    own.sort_unstable();
    own.truncate(own.len().saturating_sub(keep));
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(term: u64, taken_at_ms: u64) -> SnapshotName {
        SnapshotName { term: Term(term), taken_at_ms }
    }

    #[test]
    fn names_sort_as_their_snapshots_and_read_back() {
        let names =
            [name(1, 9), name(2, 3), name(2, 1_795_478_400_500), name(10, 0), name(u64::MAX, u64::MAX)];
        let texts: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert!(texts.is_sorted(), "{texts:?}");
        for (name, text) in names.iter().zip(&texts) {
            assert_eq!(text.parse(), Ok(*name));
        }
    }

    #[test]
    fn what_was_put_there_by_others_is_no_snapshot() {
        for text in [
            "",
            "1-2",
            "index.html",
            "00000000000000000001-0000000000000000002x",
            "+0000000000000000001-00000000000000000002",
        ] {
            assert_eq!(text.parse::<SnapshotName>(), Err(NameError(text.to_owned())));
        }
    }

    #[test]
    fn the_newest_are_kept_and_those_of_a_later_history_too() {
        let names: Vec<SnapshotName> = (1..=12).map(|ms| name(3, ms)).chain([name(7, 1)]).collect();
        for (term, keep, expected) in [
            (3, 10, vec![name(3, 1), name(3, 2)]),
            (3, 20, vec![]),
            (7, 12, vec![name(3, 1)]),
            (2, 1, vec![]),
        ] {
            assert_eq!(too_old(&names, Term(term), keep), expected, "term {term}, keep {keep}");
        }
    }
}
