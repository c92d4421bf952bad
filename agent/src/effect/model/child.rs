//! One step on a model's directory, as a process of its own: `cic-agent model-step STEP DIR`. Used by the agent itself.
//!
//! A file system whose server is gone holds whoever asks it, for minutes or for ever. Here it holds a process that can be
//! killed and left, and never a thread of the agent.

use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cic_common::time::Clock;
use cic_common::units::Bytes;
use serde::{Deserialize, Serialize};

use super::content::{Checked, Effort, Finding, Ledger, Progress, check, read_manifest};
use super::structure::{self, Outline};
use super::{damaged, outline, text, unreadable};
use crate::core::ModelFault;

/// The subcommand.
pub const STEP_COMMAND: &str = "model-step";

/// Between two lines that say how far it has come.
const SAY_EVERY_MS: u64 = 1000;

/// Whoever serves requests on this machine comes first.
const NICE: i32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Step {
    /// The directory is there and can be listed
    Mount,
    /// Lengths and headers
    Structure,
    /// Every byte, where there is a manifest
    Content,
    /// The digest that a checkpoint names the model by
    Digest,
}

/// Arguments of `model-step`.
#[derive(Debug, clap::Args)]
pub struct StepArgs {
    step: Step,
    directory: PathBuf,
    /// What was right before, for the content
    #[arg(long)]
    ledger: Option<PathBuf>,
}

/// What the process says, one JSON object a line; the answer is the last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Progress {
        done_bytes: u64,
        all_bytes: u64,
    },
    /// What was found, in words for the log; of the digest, itself.
    Answer(Result<String, ModelFault>),
}

impl Step {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Structure => "structure",
            Self::Content => "content",
            Self::Digest => "digest",
        }
    }
}

/// Does the step and says what came of it. Returns the exit code.
#[must_use]
pub fn step(args: StepArgs) -> u8 {
    let StepArgs { step, directory, ledger } = args;
    let _ = rustix::process::nice(NICE);
    let answer = match step {
        Step::Mount => mount(&directory),
        Step::Structure => structure::check(&directory).map(|Outline { files, tensors, bytes }| {
            format!("{files} files of weights, {tensors} tensors, {}", Bytes(bytes))
        }),
        Step::Content => content(&directory, ledger),
        Step::Digest => outline::digest(&directory).map_err(|error| unreadable(&directory, &error)),
    };
    say(&Line::Answer(answer));
    0
}

/// Whoever asked and is gone needs no answer.
fn say(line: &Line) {
    let said = serde_json::to_string(line).map_err(io::Error::other);
    if said.and_then(|line| writeln!(io::stdout(), "{line}")).is_err() {
        std::process::exit(1);
    }
}

pub(super) fn mount(directory: &Path) -> Result<String, ModelFault> {
    let absent = || ModelFault::NoDirectory { path: text(directory) };
    match directory.metadata() {
        Ok(found) if !found.is_dir() => return Err(absent()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
        Err(error) => return Err(unreadable(directory, &error)),
    }
    let read = std::fs::read_dir(directory).and_then(|mut entries| entries.next().transpose());
    read.map(|_| "it can be listed".to_owned()).map_err(|error| unreadable(directory, &error))
}

fn content(directory: &Path, ledger: Option<PathBuf>) -> Result<String, ModelFault> {
    let clock = Clock::start();
    let Some(manifest) = read_manifest(directory, None)? else {
        return Ok("no manifest, so that no byte was compared".to_owned());
    };
    let mut ledger = ledger.map(|place| Ledger::open(place, clock.unix_ms())).unwrap_or_default();
    let next_ms = AtomicU64::new(SAY_EVERY_MS);
    let progress = |Progress { done_bytes, all_bytes }| {
        let (now, next) = (clock.now().as_millis(), next_ms.load(Ordering::Relaxed));
        let later = now + SAY_EVERY_MS;
        // One of the threads says it.
        if now >= next && next_ms.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            say(&Line::Progress { done_bytes, all_bytes });
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let effort = Effort { threads, progress: &progress };
    let Checked { files, bytes, known_bytes, findings, unsaved } =
        check(directory, &manifest, &[], &mut ledger, &effort)?;
    if let Some(cause) = unsaved {
        eprintln!("what was verified is not remembered: {cause}");
    }
    match worst(directory, &findings) {
        Some(fault) => Err(fault),
        None => Ok(format!("{files} files, {}, of which {} were known", Bytes(bytes), Bytes(known_bytes))),
    }
}

/// What another reading does not mend comes first.
pub(super) fn worst(directory: &Path, findings: &[Finding]) -> Option<ModelFault> {
    let worst = findings.iter().min_by_key(|finding| finding.wrong.may_heal())?;
    let path = directory.join(&worst.path);
    let cause = match findings.len() - 1 {
        0 => worst.wrong.to_string(),
        more => format!("{}; {more} files more are wrong", worst.wrong),
    };
    Some(match worst.wrong.may_heal() {
        true => ModelFault::Unreadable { path: text(&path), cause },
        false => damaged(&path, cause),
    })
}
