//! Records what the core heard, and replays it: `--record FILE`, `replay FILE`.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::path::Path;

use cic_common::id::FleetName;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::warn;

use crate::core::{Action, BrakeRules, Event, Fleet, Timing};

/// Lines on their way to the disk. A record with a gap replays differently, so a full queue ends the record.
const LINES_WAITING_MAX: usize = 8192;

/// First line of a record: what the core was made with.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    timing: Timing,
    brake: BrakeRules,
    #[serde(default)]
    fleet: FleetName,
}

/// Every other line.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Heard<E> {
    now: Mono,
    event: E,
}

#[derive(Debug, Serialize)]
struct Decided<'a> {
    now: Mono,
    action: &'a Action,
}

/// Writes what the core hears to a file, beside the driver.
#[derive(Debug)]
pub struct Recorder {
    lines: Option<mpsc::Sender<String>>,
}

impl Recorder {
    /// Creates `path` and begins with the core's parameters.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub fn create(
        path: &Path,
        timing: Timing,
        brake: BrakeRules,
        fleet: &FleetName,
        tasks: &Supervisor,
    ) -> io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        let head = Head { timing, brake, fleet: fleet.clone() };
        writeln!(file, "{}", serde_json::to_string(&head)?)?;
        file.flush()?;
        let (lines, mut waiting) = mpsc::channel::<String>(LINES_WAITING_MAX);
        tasks.spawn("record", Kind::Passing, move |token| async move {
            // The driver's end closes the queue; the token only bounds the wait.
            while let Some(line) = tokio::select! {
                line = waiting.recv() => line,
                () = token.cancelled() => waiting.try_recv().ok(),
            } {
                writeln!(file, "{line}")?;
                if waiting.is_empty() {
                    file.flush()?;
                }
            }
            Ok(file.flush()?)
        });
        Ok(Self { lines: Some(lines) })
    }

    /// Records one event. Never waits.
    pub fn write(&mut self, now: Mono, event: &Event) {
        let Some(lines) = &self.lines else { return };
        let written = serde_json::to_string(&Heard { now, event })
            .map_err(|error| error.to_string())
            .and_then(|line| lines.try_send(line).map_err(|error| error.to_string()));
        if let Err(error) = written {
            warn!(%error, "record ends here");
            self.lines = None;
        }
    }
}

/// Why a record cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("cannot read the record")]
    Read(#[from] io::Error),
    #[error("record is empty")]
    Empty,
    #[error("line {line} is not readable")]
    Line { line: usize, source: serde_json::Error },
}

/// Feeds a record to a fresh core and prints each decision again, one JSON line each. A last line cut short by
/// a crash is left out.
///
/// # Errors
/// When the record cannot be read, or `out` not written.
pub fn replay(path: &Path, out: &mut impl Write) -> Result<(), ReplayError> {
    let mut lines = BufReader::new(File::open(path)?).lines().enumerate().peekable();
    let (_, head) = lines.next().ok_or(ReplayError::Empty)?;
    let head: Head = serde_json::from_str(&head?).map_err(|source| ReplayError::Line { line: 1, source })?;
    let mut fleet = Fleet::new(head.timing, head.brake).of_fleet(head.fleet);
    let mut actions = Vec::new();
    while let Some((number, line)) = lines.next() {
        let Heard { now, event } = match serde_json::from_str(&line?) {
            Ok(heard) => heard,
            Err(source) if source.is_eof() && lines.peek().is_none() => break,
            Err(source) => return Err(ReplayError::Line { line: number + 1, source }),
        };
        fleet.step(now, event, &mut actions);
        for action in actions.drain(..) {
            let line = serde_json::to_string(&Decided { now, action: &action }).map_err(io::Error::from)?;
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}
