//! How a command fails: one line a mistake, and an exit code.

use std::fmt;

use super::closed::EXIT_CLOSED;

/// The command was understood and could not be done.
const EXIT_FAILED: u8 = 1;

/// EX_CONFIG: what was given is of no use; nothing was started.
const EXIT_CONFIG: u8 = cic_common::config::EXIT_CONFIG;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) struct Failure {
    lines: Vec<String>,
    code: u8,
}

impl Failure {
    pub(super) fn new(line: impl Into<String>) -> Self {
        Self { lines: vec![line.into()], code: EXIT_FAILED }
    }

    /// Everything that is wrong with what was given.
    pub(super) fn mistakes(lines: Vec<String>) -> Self {
        Self { lines, code: EXIT_CONFIG }
    }

    /// Nobody reads any more, so nothing is said.
    pub(super) fn closed() -> Self {
        Self { lines: Vec::new(), code: EXIT_CLOSED }
    }

    pub(super) fn code(&self) -> u8 {
        self.code
    }

    /// Adds what was seen, below the failure itself.
    pub(super) fn with(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.lines.extend(lines);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}
