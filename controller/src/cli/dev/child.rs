//! A child process that is started again when it ends, as systemd would.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use cic_common::time::{Clock, Mono};
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use super::super::failure::Failure;
use super::super::processes::FLEET_VARIABLE;
use crate::provision::local::process;

/// First wait before a start, doubled each time. `RestartSec` of the shipped units.
const RESTART_FIRST: Duration = Duration::from_millis(200);

/// Longest wait between starts.
const RESTART_MAX: Duration = Duration::from_secs(5);

/// A child that was up this long starts the waits anew.
const UP_ENOUGH: Duration = Duration::from_secs(10);

/// Between SIGTERM and SIGKILL at the end.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Read from the end of a log for its last lines.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// What it runs, and where its output goes.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    /// For people: `controller`.
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) log: PathBuf,
    /// The fleet's directory.
    pub(super) fleet: PathBuf,
    /// Whether it sees this process's own `CIC_…` variables.
    pub(super) inherits_settings: bool,
}

/// `Up -> Due -> Up`, until [`Kept::stop`].
#[derive(Debug)]
enum State {
    Up { child: Child, since: Mono },
    Due { at: Mono },
}

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) recipe: Recipe,
    state: State,
    wait: Duration,
    clock: Clock,
}

/// What happened to it.
#[derive(Debug)]
pub(super) enum Turn {
    Ended(ExitStatus),
    Started,
    NotStarted(io::Error),
}

impl Kept {
    /// # Errors
    /// When the program cannot be started at all.
    pub(super) fn start(recipe: Recipe, clock: Clock) -> Result<Self, Failure> {
        let child = spawn(&recipe).map_err(|error| {
            Failure::new(format!("{}: {} cannot be started: {error}", recipe.name, recipe.program.display()))
        })?;
        let state = State::Up { child, since: clock.now() };
        Ok(Self { recipe, state, wait: RESTART_FIRST, clock })
    }

    /// Waits for the next turn, without a limit: a child that stays up has none. Cancel safe.
    pub(super) async fn turn(&mut self) -> Turn {
        match &mut self.state {
            State::Up { child, since } => {
                let since = *since;
                let ended = child.wait().await;
                let now = self.clock.now();
                if now.since(since) >= UP_ENOUGH {
                    self.wait = RESTART_FIRST;
                }
                self.put_off(now);
                match ended {
                    Ok(status) => Turn::Ended(status),
                    Err(error) => Turn::NotStarted(error),
                }
            }
            State::Due { at } => {
                tokio::time::sleep_until(self.clock.instant(*at).into()).await;
                let now = self.clock.now();
                match spawn(&self.recipe) {
                    Ok(child) => {
                        self.state = State::Up { child, since: now };
                        Turn::Started
                    }
                    Err(error) => {
                        self.put_off(now);
                        Turn::NotStarted(error)
                    }
                }
            }
        }
    }

    fn put_off(&mut self, now: Mono) {
        self.state = State::Due { at: now + self.wait };
        self.wait = (self.wait * 2).min(RESTART_MAX);
    }

    /// Ends it for good: SIGTERM, then SIGKILL.
    pub(super) async fn stop(mut self) {
        let State::Up { child, .. } = &mut self.state else { return };
        if let Some(pid) = child.id() {
            process::send(pid, Signal::SIGTERM);
            process::send(pid, Signal::SIGCONT);
        }
        if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
            let _ = child.start_kill();
            let _ = tokio::time::timeout(STOP_WITHIN, child.wait()).await;
        }
    }

    pub(super) fn last_lines(&self, count: usize) -> Vec<String> {
        last_lines(&self.recipe.log, count)
    }
}

fn spawn(recipe: &Recipe) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(&recipe.log)?;
    let mut command = Command::new(&recipe.program);
    command.args(&recipe.args);
    if !recipe.inherits_settings {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CIC_") {
                command.env_remove(name);
            }
        }
    }
    command.env(FLEET_VARIABLE, &recipe.fleet);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // Ctrl-C reaches this process only, which then ends the fleet in order.
    command.process_group(0).kill_on_drop(true).spawn()
}

/// The last `count` lines of a log that are not empty.
pub(super) fn last_lines(log: &Path, count: usize) -> Vec<String> {
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_shown_without_its_beginning() {
        let directory = tempfile::tempdir().expect("directory");
        let log = directory.path().join("a.log");
        std::fs::write(&log, format!("{}\nfirst\n\nsecond\n", "x".repeat(100_000))).expect("writes");
        assert_eq!(last_lines(&log, 2), ["first", "second"]);
        assert!(last_lines(Path::new("/no/such/log"), 2).is_empty());
    }

    #[tokio::test]
    async fn a_child_that_ends_is_started_again() {
        let directory = tempfile::tempdir().expect("directory");
        let log = directory.path().join("child.log");
        let recipe = Recipe {
            name: "child",
            program: "sh".into(),
            args: vec!["-c".to_owned(), "echo up; exit 3".to_owned()],
            log: log.clone(),
            fleet: directory.path().to_owned(),
            inherits_settings: false,
        };
        let mut kept = Kept::start(recipe, Clock::start()).expect("starts");
        for _ in 0..2 {
            match kept.turn().await {
                Turn::Ended(status) => assert_eq!(status.code(), Some(3)),
                other => panic!("{other:?}"),
            }
            assert!(matches!(kept.turn().await, Turn::Started));
        }
        kept.stop().await;
        assert!(last_lines(&log, 9).len() >= 2);
    }
}
