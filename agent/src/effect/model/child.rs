//! One step on a model's directory, as a process of its own: `cic-agent model-step STEP DIR`. Used by the agent itself.
//!
//! A file system whose server is gone holds whoever asks it, for minutes or for ever. Here it holds a process that can be
//! killed and left, and never a thread of the agent.

use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use cic_common::memory::memory_available;
use cic_common::source::without_options;
use cic_common::supervise::Supervisor;
use cic_common::time::{Clock, unix_ms};
use cic_common::tls::config::tcp_client;
use cic_common::tls::{Identity, Trust};
use cic_common::units::Bytes;
use serde::{Deserialize, Serialize};

use super::attach::attach;
use super::content::{Checked, Effort, Finding, Ledger, Progress, check, read_manifest};
use super::fetch::{Address, Neighbours};
use super::structure::{self, Outline};
use super::warm::warm;
use super::{damaged, fetch, outline, text, unreadable};
use crate::core::ModelFault;

/// The subcommand.
pub const STEP_COMMAND: &str = "model-step";

/// Between two lines that say how far it has come.
const SAY_EVERY_MS: u64 = 1000;

/// Between two looks whether another process has fetched it.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Whoever serves requests on this machine comes first.
const NICE: i32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Step {
    /// The directory is there and can be listed
    Mount,
    /// A file system is mounted on it
    Attach,
    /// Lengths and headers
    Structure,
    /// Every byte, where there is a manifest
    Content,
    /// What is missing or wrong, from a store
    Fetch,
    /// The digest that a checkpoint names the model by
    Digest,
    /// Into the page cache
    Warm,
}

/// Arguments of `model-step`.
#[derive(Debug, clap::Args)]
pub struct StepArgs {
    step: Step,
    directory: PathBuf,
    /// What was right before, for the content and a fetch
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// Where the model is published, for a fetch; what to mount, for an attach
    #[arg(long)]
    url: Option<String>,
    /// Nodes that serve the model, for a fetch
    #[arg(long, value_name = "NODE=ADDRESS", requires_all = ["model", "identity", "ca"])]
    neighbour: Vec<Address>,
    /// What they call it
    #[arg(long)]
    model: Option<String>,
    /// This node's certificate and key
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Whom it trusts
    #[arg(long)]
    ca: Option<PathBuf>,
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
            Self::Attach => "attach",
            Self::Structure => "structure",
            Self::Content => "content",
            Self::Fetch => "fetch",
            Self::Digest => "digest",
            Self::Warm => "warm",
        }
    }
}

/// Does the step and says what came of it. Returns the exit code.
#[must_use]
pub fn step(args: StepArgs) -> u8 {
    let StepArgs { step, ref directory, ref ledger, ref url, .. } = args;
    if step == Step::Attach {
        // A daemon that it leaves reads for the engine, and is no more than the engine to the kernel's killer.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    } else {
        let _ = rustix::process::nice(NICE);
    }
    // Nobody else waits for it, and the next agent begins its own.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let answer = match step {
        Step::Mount => mount(directory),
        Step::Attach => attach(directory, url.as_deref().unwrap_or_default()),
        Step::Structure => structure::check(directory).map(|Outline { files, tensors, bytes }| {
            format!("{files} files of weights, {tensors} tensors, {}", Bytes(bytes))
        }),
        Step::Content => content(directory, ledger.clone()),
        Step::Fetch => fetched(&args),
        Step::Digest => outline::digest(directory).map_err(|error| unreadable(directory, &error)),
        Step::Warm => warm(directory, memory_available().map(|free| free.0)),
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

fn content(directory: &Path, place: Option<PathBuf>) -> Result<String, ModelFault> {
    let Some(manifest) = read_manifest(directory, None)? else {
        return Ok("no manifest, so that no byte was compared".to_owned());
    };
    let mut ledger = self::ledger(place);
    let progress = saying();
    let effort = Effort { threads: threads(), progress: &progress };
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

fn ledger(place: Option<PathBuf>) -> Ledger {
    place.map(|place| Ledger::open(place, unix_ms())).unwrap_or_default()
}

/// Says progress, the first at once and then now and then.
fn saying() -> impl Fn(Progress) + Sync {
    let (clock, next_ms) = (Clock::start(), AtomicU64::new(0));
    move |Progress { done_bytes, all_bytes }| {
        let (now, next) = (clock.now().as_millis(), next_ms.load(Ordering::Relaxed));
        let later = now + SAY_EVERY_MS;
        // One of the threads says it.
        if now >= next && next_ms.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            say(&Line::Progress { done_bytes, all_bytes });
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn fetched(args: &StepArgs) -> Result<String, ModelFault> {
    let url = args.url.as_deref().unwrap_or_default();
    let not_fetched = |cause: String| ModelFault::NotFetched { url: without_options(url).to_owned(), cause };
    let runtime = fetch::runtime().map_err(|error| not_fetched(error.to_string()))?;
    let fetch_once = async |neighbours: Option<Arc<Neighbours>>| {
        let store = fetch::store_at(url)?;
        let manifest = fetch::manifest_of(&store).await?;
        let progress = saying();
        let effort = Effort { threads: threads(), progress: &progress };
        let places = fetch::Places { store, neighbours };
        let mut ledger = ledger(args.ledger.clone());
        fetch::fetch(&places, &manifest, &args.directory, &[], &mut ledger, &effort).await
    };
    let done = runtime.block_on(async {
        let tasks = Supervisor::new();
        // They are a help, and no more: what keeps them from being asked is said and passed over.
        let neighbours = neighbours(args, &tasks).unwrap_or_else(|error| {
            eprintln!("no other node is asked: {error:#}");
            None
        });
        loop {
            match fetch_once(neighbours.clone()).await {
                // Another agent of this machine has the same model to fetch: what it brings is ours too.
                Err(error) if error.is::<fetch::Busy>() => {
                    say(&Line::Progress { done_bytes: 0, all_bytes: 0 });
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                done => break done,
            }
        }
    });
    let fetch::Fetched { files, bytes, fetched_bytes, given } =
        done.map_err(|error| not_fetched(format!("{error:#}")))?;
    let mut said = format!("{files} files, {}, of which {} were fetched", Bytes(bytes), Bytes(fetched_bytes));
    for (node, bytes) in given {
        said.push_str(&format!("; {} from {node}", Bytes(bytes)));
    }
    Ok(said)
}

/// The nodes that serve the model, if any were named.
fn neighbours(args: &StepArgs, tasks: &Supervisor) -> anyhow::Result<Option<Arc<Neighbours>>> {
    let (Some(model), Some(identity), Some(ca)) = (&args.model, &args.identity, &args.ca) else {
        return Ok(None);
    };
    if args.neighbour.is_empty() {
        return Ok(None);
    }
    let identity =
        Identity::load(identity)?.with_context(|| format!("{} is not there", identity.display()))?;
    let tls = tcp_client(&identity, &Trust::from_file(ca)?)?;
    Ok(Some(Arc::new(Neighbours::new(model.clone(), args.neighbour.clone(), tls, tasks.clone()))))
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
