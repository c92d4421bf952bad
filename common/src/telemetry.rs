//! Logs: text for people or JSON lines for machines, on stderr.

use std::io;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// How a log line looks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Why logs cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log filter {text:?} is of no use")]
    Filter {
        text: String,
        #[source]
        source: ParseError,
    },
    #[error("logs have begun before")]
    Begun(#[source] TryInitError),
}

/// Begins logging for the whole process. `filter` is an `EnvFilter` text such as `info` or `info,cic_agent=debug`.
///
/// # Errors
/// When the filter cannot be read, or logging has begun before.
pub fn begin(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let filter = parse_filter(filter)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let begun = match format {
        LogFormat::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
    begun.map_err(TelemetryError::Begun)
}

/// # Errors
/// When `text` is no filter: for whoever reads the configuration, to list it among the other mistakes.
pub fn check_filter(text: &str) -> Result<(), TelemetryError> {
    parse_filter(text).map(drop)
}

fn parse_filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(text).map_err(|source| TelemetryError::Filter { text: text.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_before_it_is_used() {
        assert!(check_filter("info,cic_agent=debug").is_ok());
        assert!(check_filter("cic_agent=loud").is_err());
    }
}
