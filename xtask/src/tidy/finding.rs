//! One breach of a rule.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Error,
    Warning,
}

/// Shown as `file:line: rule: what; way out`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    pub(super) path: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) level: Level,
    pub(super) rule: &'static str,
    pub(super) what: String,
    pub(super) way_out: String,
}

impl Finding {
    pub(super) fn error(
        path: &str,
        line: usize,
        rule: &'static str,
        what: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        let (path, what, way_out) = (path.to_owned(), what.into(), way_out.into());
        Self { path, line, level: Level::Error, rule, what, way_out }
    }

    pub(super) fn warning(self) -> Self {
        Self { level: Level::Warning, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, level, rule, what, way_out } = self;
        let level = match level {
            Level::Error => "",
            Level::Warning => "warning: ",
        };
        write!(f, "{path}:{line}: {level}{rule}: {what}; {way_out}")
    }
}
