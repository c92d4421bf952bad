//! How the stand-in misbehaves on demand.

use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use nix::sys::signal::{Signal, raise};

/// From the death of the engine core to the end of the process; vLLM takes 0.8 to 2.7 s.
pub(crate) const CORE_DEATH_LASTS: Duration = Duration::from_millis(1500);

/// Every switch is also an environment variable, so that a test can reach an engine that something else starts.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Stand-in switches (tokens are counted over the whole process)")]
pub(crate) struct Faults {
    /// Seconds before the port is bound, as if weights were loading
    #[arg(
        long = "standin-start-after",
        env = "CIC_STANDIN_START_AFTER",
        value_name = "SECONDS",
        default_value = "0"
    )]
    #[arg(value_parser = seconds)]
    pub(crate) start_after: Duration,

    /// Exit with this code instead of binding the port (after the start delay)
    #[arg(long = "standin-exit-at-start", env = "CIC_STANDIN_EXIT_AT_START", value_name = "CODE")]
    pub(crate) exit_at_start: Option<u8>,

    /// Milliseconds from a request to its first token
    #[arg(
        long = "standin-first-token-ms",
        env = "CIC_STANDIN_FIRST_TOKEN_MS",
        value_name = "MS",
        default_value = "0"
    )]
    #[arg(value_parser = milliseconds)]
    pub(crate) first_token_after: Duration,

    /// Milliseconds from one token of a request to the next
    #[arg(long = "standin-token-ms", env = "CIC_STANDIN_TOKEN_MS", value_name = "MS", default_value = "5")]
    #[arg(value_parser = milliseconds)]
    pub(crate) token_delay: Duration,

    /// Crash when this token is due; it is not sent
    #[arg(long = "standin-crash-at-token", env = "CIC_STANDIN_CRASH_AT_TOKEN", value_name = "N")]
    pub(crate) crash_at_token: Option<u64>,

    /// How to crash: `exit:CODE`, `signal:NAME` (KILL, SEGV, ABRT…) or `core`, as vLLM does when its engine core dies:
    /// an error event and `[DONE]` in each stream, /health 503, exit 0
    #[arg(
        long = "standin-crash-with",
        env = "CIC_STANDIN_CRASH_WITH",
        value_name = "HOW",
        default_value = "signal:KILL"
    )]
    pub(crate) crash_with: Crash,

    /// From this token on no token moves, while /health stays 200. SIGUSR1 does the same, and undoes it
    #[arg(long = "standin-hang-at-token", env = "CIC_STANDIN_HANG_AT_TOKEN", value_name = "N")]
    pub(crate) hang_at_token: Option<u64>,

    /// Do not react to SIGTERM or SIGINT
    #[arg(long = "standin-ignore-sigterm", env = "CIC_STANDIN_IGNORE_SIGTERM", value_parser = FalseyValueParser::new())]
    pub(crate) ignore_sigterm: bool,

    /// How running requests end on SIGTERM: `abort` as finish reason, an `error` event, or not at all (`hang`: only
    /// SIGKILL helps). vLLM does each of these, by chance
    #[arg(
        long = "standin-stop-with",
        env = "CIC_STANDIN_STOP_WITH",
        value_name = "HOW",
        default_value = "abort"
    )]
    pub(crate) stop_with: StopWith,

    /// Write so many megabytes of log lines a second to standard output
    #[arg(
        long = "standin-log-flood",
        env = "CIC_STANDIN_LOG_FLOOD",
        value_name = "MB_PER_S",
        default_value = "0"
    )]
    pub(crate) log_flood_mb_per_s: f64,

    /// Serve under this name, whatever --served-model-name says
    #[arg(long = "standin-model-name", env = "CIC_STANDIN_MODEL_NAME", value_name = "NAME")]
    pub(crate) model_name: Option<String>,

    /// Answer every completion with 500
    #[arg(long = "standin-fail-completions", env = "CIC_STANDIN_FAIL_COMPLETIONS", value_parser = FalseyValueParser::new())]
    pub(crate) fail_completions: bool,

    /// Answer /health with 503
    #[arg(long = "standin-unhealthy", env = "CIC_STANDIN_UNHEALTHY", value_parser = FalseyValueParser::new())]
    pub(crate) is_unhealthy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StopWith {
    Abort,
    Error,
    Hang,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    Exit(u8),
    Signal(Signal),
    Core,
}

impl FromStr for Crash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "core" => Ok(Self::Core),
            Some(("exit", code)) => {
                code.parse().map(Self::Exit).map_err(|_| format!("`{code}` is no exit code"))
            }
            Some(("signal", name)) => {
                let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
                full.parse().map(Self::Signal).map_err(|_| format!("`{name}` is no signal"))
            }
            _ => Err("expected exit:CODE, signal:NAME or core".to_owned()),
        }
    }
}

/// What happens when the token with this number is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Send,
    Hang,
    Crash(Crash),
}

impl Faults {
    /// `number` counts from 1.
    pub(crate) fn at_token(&self, number: u64) -> Due {
        if self.crash_at_token.is_some_and(|at| number >= at) {
            Due::Crash(self.crash_with)
        } else if self.hang_at_token.is_some_and(|at| number == at) {
            Due::Hang
        } else {
            Due::Send
        }
    }

    /// Writes log lines on a thread of its own: a reader that falls behind blocks the writer, and that must not be the
    /// thread that serves.
    pub(crate) fn start_log_flood(&self) {
        const CHUNK: Duration = Duration::from_millis(20);
        const LINE: &[u8] =
            b"(EngineCore pid=0) INFO 01-01 00:00:00 [standin.py:1] This line is one of very many like it.\n";
        if self.log_flood_mb_per_s <= 0.0 {
            return;
        }
        let lines = (self.log_flood_mb_per_s * 1e6 * CHUNK.as_secs_f64() / LINE.len() as f64).ceil() as usize;
        let chunk = LINE.repeat(lines);
        std::thread::spawn(move || {
            while std::io::stdout().write_all(&chunk).is_ok() {
                std::thread::sleep(CHUNK);
            }
        });
    }
}

/// Ends the process at once; the core's death is the one crash that leaves time, so the caller sees to it.
pub(crate) fn die(crash: Crash) {
    match crash {
        Crash::Exit(code) => std::process::exit(i32::from(code)),
        Crash::Signal(signal) => drop(raise(signal)),
        Crash::Core => {}
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let milliseconds: f64 = text.parse().map_err(|_| "not a number of milliseconds".to_owned())?;
    Duration::try_from_secs_f64(milliseconds / 1e3).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashes_are_named_by_exit_code_or_signal() {
        assert_eq!("exit:3".parse(), Ok(Crash::Exit(3)));
        assert_eq!("signal:SEGV".parse(), Ok(Crash::Signal(Signal::SIGSEGV)));
        assert_eq!("signal:SIGKILL".parse(), Ok(Crash::Signal(Signal::SIGKILL)));
        assert_eq!("core".parse(), Ok(Crash::Core));
        assert!("signal:NOPE".parse::<Crash>().is_err());
        assert!("exit:256".parse::<Crash>().is_err());
    }
}
