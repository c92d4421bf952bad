//! Everything that is wrong with a configuration, one line each.

use std::fmt;
use std::path::Path;

/// Exit code of a program whose configuration is of no use: EX_CONFIG of sysexits.h.
pub const EXIT_CONFIG: u8 = 78;

/// A list of mistakes, in the order they were found. As an error it is never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigMistakes {
    file: String,
    lines: Vec<String>,
}

impl ConfigMistakes {
    /// No mistakes yet in the file at `path`, if there is one.
    #[must_use]
    pub fn none(path: Option<&Path>) -> Self {
        let file = path.map_or_else(|| "configuration".to_owned(), |path| path.display().to_string());
        Self { file, lines: Vec::new() }
    }

    /// A mistake of one key.
    pub fn push(&mut self, section: &str, key: &str, what: impl fmt::Display) {
        self.lines.push(format!("{}: [{section}] {key}: {what}", self.file));
    }

    /// A mistake of the file as a whole.
    pub fn push_whole(&mut self, what: impl fmt::Display) {
        self.lines.push(format!("{}: {what}", self.file));
    }

    /// A mistake of one environment variable.
    pub fn push_variable(&mut self, name: &str, what: impl fmt::Display) {
        self.lines.push(format!("{name}: {what}"));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

impl fmt::Display for ConfigMistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}
