//! When a check counts as failed: pure counting.

use serde::{Deserialize, Serialize};

/// One miss is noise and two may be one restart: at one check each 10 s, half a minute.
pub(super) const FAILURES_MAX: u32 = 3;

/// What a failed check means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A leader that misses it should leave the lead to another.
    Critical,
    /// People are told.
    Warning,
}

impl Severity {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// What a round changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Stays,
    /// As many failures in a row as are let pass.
    Fails,
    /// As many once more: nothing came of the last time.
    FailsOn,
    Works,
}

/// Failures of one check in a row. `up -> up, some failures -> down -> up`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    failures: u32,
}

impl Tally {
    pub(super) fn count(&mut self, is_good: bool) -> Turn {
        if is_good {
            let was_up = self.is_up();
            self.failures = 0;
            return if was_up { Turn::Stays } else { Turn::Works };
        }
        self.failures = self.failures.saturating_add(1);
        match self.failures {
            FAILURES_MAX => Turn::Fails,
            more if more % FAILURES_MAX == 0 => Turn::FailsOn,
            _ => Turn::Stays,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.failures < FAILURES_MAX
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_are_one_and_one_success_ends_it() {
        use Turn::{Fails, FailsOn, Stays, Works};
        for (rounds, expected) in [
            ("+++", vec![Stays; 3]),
            ("--+--+", vec![Stays; 6]),
            ("---", vec![Stays, Stays, Fails]),
            ("---+-", vec![Stays, Stays, Fails, Works, Stays]),
            ("------+", vec![Stays, Stays, Fails, Stays, Stays, FailsOn, Works]),
        ] {
            let mut tally = Tally::default();
            let turns: Vec<Turn> = rounds.chars().map(|round| tally.count(round == '+')).collect();
            assert_eq!(turns, expected, "{rounds}");
        }
    }

    #[test]
    fn it_is_down_from_the_third_failure_on() {
        let mut tally = Tally::default();
        let ups: Vec<bool> = "--+---+"
            .chars()
            .map(|round| {
                tally.count(round == '+');
                tally.is_up()
            })
            .collect();
        assert_eq!(ups, [true, true, true, true, true, false, true]);
    }
}
