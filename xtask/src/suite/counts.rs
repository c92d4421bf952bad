//! How many tests passed, failed and were skipped.

use std::ops::AddAssign;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl Counts {
    /// What nextest says in its `Summary` line, or None for any other line.
    ///
    /// `Summary [   1.2s] 30/31 tests run: 28 passed (1 slow), 1 failed, 1 timed out, 2 skipped`; see
    /// <https://nexte.st/docs/reporting/>. Tests that were never run, because the run was cut short, fail.
    pub(super) fn of_nextest(line: &str) -> Option<Self> {
        let line = without_notes(line);
        let (_, rest) = line.trim_start().strip_prefix("Summary [")?.split_once(']')?;
        let (run, outcomes) = rest.split_once(':')?;
        let mut counts = Self::default();
        for outcome in outcomes.split(',') {
            let mut words = outcome.split_whitespace();
            let count: u64 = words.next()?.parse().ok()?;
            match words.next()? {
                "passed" => counts.passed += count,
                "skipped" => counts.skipped += count,
                // failed, timed out, exec failed, leaky failures
                _ => counts.failed += count,
            }
        }
        if let Some((done, all)) = run.split_whitespace().next()?.split_once('/') {
            counts.failed += all.parse::<u64>().ok()?.saturating_sub(done.parse().ok()?);
        }
        Some(counts)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// A line without what stands in round brackets, where nextest writes notes with commas of their own.
fn without_notes(line: &str) -> String {
    let mut depth = 0u32;
    line.chars()
        .filter(|c| {
            match c {
                '(' => depth += 1,
                ')' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_nextest_is_read() {
        for (line, passed, failed, skipped) in [
            ("     Summary [   0.005s] 3 tests run: 3 passed, 0 skipped", 3, 0, 0),
            ("Summary [ 12.0s] 1 test run: 1 passed, 4 skipped", 1, 0, 4),
            (
                "Summary [ 12.0s] 9 tests run: 6 passed (2 slow, 1 flaky), 2 failed, 1 timed out, 4 skipped",
                6,
                3,
                4,
            ),
            ("Summary [  2.0s] 5/10 tests run: 4 passed, 1 failed, 0 skipped", 4, 6, 0),
        ] {
            assert_eq!(Counts::of_nextest(line), Some(Counts { passed, failed, skipped }), "{line}");
        }
        assert_eq!(Counts::of_nextest("    PASS [ 0.1s] cic-common id::tests::x"), None);
    }
}
