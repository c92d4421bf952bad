//! What became of each step, as a table and as counts.

use std::fmt::Write as _;
use std::time::Duration;

use super::counts::Counts;

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// Ran tests of its own: they are counted in place of the step.
    Tested {
        counts: Counts,
        ended_well: bool,
        /// Each failed test with what it said.
        failures: String,
    },
    Failed(String),
    Skipped(String),
}

#[derive(Debug, Default)]
pub(super) struct Report {
    rows: Vec<(String, Outcome, Duration)>,
}

impl Report {
    pub(super) fn add(&mut self, step: &str, outcome: Outcome, took: Duration) {
        self.rows.push((step.to_owned(), outcome, took));
    }

    pub(super) fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for (_, outcome, _) in &self.rows {
            total += outcome.counts();
        }
        total
    }

    /// The table, the failed tests, and as last line `N passed, N failed, N skipped`.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let width = self.rows.iter().map(|(step, ..)| step.chars().count()).max().unwrap_or(0);
        let mut total = Duration::ZERO;
        for (index, (step, outcome, took)) in self.rows.iter().enumerate() {
            total += *took;
            let _ = writeln!(
                text,
                "{:>2}  {step:<width$}  {:>5.1} min  {}",
                index + 1,
                minutes(*took),
                outcome.text()
            );
        }
        let Counts { passed, failed, skipped } = self.counts();
        let _ = writeln!(text, "{:>2}  {:<width$}  {:>5.1} min", "", "all", minutes(total));
        for (_, outcome, _) in &self.rows {
            if let Outcome::Tested { failures, .. } = outcome {
                text.push_str(failures);
            }
        }
        let _ = write!(text, "{passed} passed, {failed} failed, {skipped} skipped");
        text
    }
}

impl Outcome {
    fn counts(&self) -> Counts {
        match self {
            Self::Passed => Counts { passed: 1, ..Counts::default() },
            Self::Failed(_) => Counts { failed: 1, ..Counts::default() },
            Self::Skipped(_) => Counts { skipped: 1, ..Counts::default() },
            // A run that ended badly with no failed test still failed.
            Self::Tested { counts, ended_well: false, .. } if counts.failed == 0 => {
                Counts { failed: 1, ..*counts }
            }
            Self::Tested { counts, .. } => *counts,
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Passed => "pass".to_owned(),
            Self::Failed(why) => format!("FAIL: {why}"),
            Self::Skipped(why) => format!("skip: {why}"),
            Self::Tested { .. } => {
                let Counts { passed, failed, skipped } = self.counts();
                let verdict = if failed == 0 { "pass" } else { "FAIL" };
                format!("{verdict}: {passed} tests passed, {failed} failed, {skipped} skipped")
            }
        }
    }
}

fn minutes(span: Duration) -> f64 {
    span.as_secs_f64() / 60.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_tests_and_steps() {
        let mut report = Report::default();
        report.add("format", Outcome::Passed, Duration::from_secs(6));
        let counts = Counts { passed: 40, failed: 2, skipped: 1 };
        let failures = "failed: cic-agent serve::hangs\n".to_owned();
        report.add("tests", Outcome::Tested { counts, ended_well: false, failures }, Duration::from_secs(60));
        report.add("deny", Outcome::Skipped("not installed".into()), Duration::ZERO);
        report.add("docs", Outcome::Failed("exit status: 101".into()), Duration::ZERO);
        let text = report.text();
        assert_eq!(text.lines().last(), Some("41 passed, 3 failed, 2 skipped"), "{text}");
        assert!(text.contains(" 1  format    0.1 min  pass\n"), "{text}");
        assert!(text.contains("min\nfailed: cic-agent serve::hangs\n41 passed"), "{text}");
    }

    #[test]
    fn a_run_that_ends_badly_without_a_failed_test_has_failed() {
        let counts = Counts { passed: 40, ..Counts::default() };
        let failed_count =
            |ended_well| Outcome::Tested { counts, ended_well, failures: String::new() }.counts().failed;
        assert_eq!((failed_count(false), failed_count(true)), (1, 0));
    }
}
