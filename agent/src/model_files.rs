//! `cic-agent verify`, `manifest` and `fetch`: a model's files, by hand.

use std::fs::File;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use cic_common::model::manifest::MANIFEST_NAME;
use cic_common::time::Clock;
use cic_common::units::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::effect::model::content::{Checked, Effort, Finding, Ledger, Progress, check, make, read_manifest};
use crate::effect::model::fetch::{self, Fetched, Places};
use crate::effect::model::structure::{self, Outline};

const BAR: &str =
    "{percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";

/// What to look at, and how closely.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct VerifyArgs {
    /// The model's directory
    pub directory: PathBuf,
    /// Read every byte and compare it with the manifest
    #[arg(long)]
    pub deep: bool,
    /// The manifest: one of `cic-agent manifest`, of OpenSSF model signing, or a list of path, size and sha256; by default
    /// cic-manifest.json or model.sig in the directory
    #[arg(long, value_name = "FILE", requires = "deep")]
    pub manifest: Option<PathBuf>,
    /// Remember in this file what was right, and do not read it again while it is unchanged
    #[arg(long, value_name = "FILE", requires = "deep")]
    pub cache: Option<PathBuf>,
    /// Threads that read and hash; by default one for each processor
    #[arg(long, value_name = "N", requires = "deep")]
    pub threads: Option<NonZeroUsize>,
}

/// Whose manifest to write.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct ManifestArgs {
    /// The model's directory
    pub directory: PathBuf,
    /// Add SHA-256, for other tools: each file is read twice
    #[arg(long)]
    pub sha256: bool,
    /// Where to write it, in place of cic-manifest.json in the directory
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Threads that read and hash; by default one for each processor
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// What to fetch, and to where.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct FetchArgs {
    /// Where the model is published: s3://, gs://, az:// or file:///, with its cic-manifest.json; credentials as each cloud's
    /// own tools have them
    pub url: String,
    /// The model's directory, which need not be there
    pub directory: PathBuf,
    /// The manifest, in place of the one in the store
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Threads that read and hash what is there; by default one for each processor
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// Prints what is wrong, or that nothing is. Returns the exit code: 1 when something is.
///
/// # Errors
/// When the directory or the manifest cannot be read.
pub fn verify(args: &VerifyArgs) -> anyhow::Result<u8> {
    let directory = args.directory.display();
    let structure = structure::check(&args.directory);
    if !args.deep {
        let Outline { files, tensors, bytes } = structure?;
        let bytes = Bytes(bytes);
        println!("{directory} is whole by its headers: {files} files of weights, {tensors} tensors, {bytes}");
        return Ok(0);
    }
    let manifest = read_manifest(&args.directory, args.manifest.as_deref())?.with_context(|| {
        format!(
            "{directory} has no manifest to compare with (cic-manifest.json, model.sig): name one with --manifest, or have \
             `cic-agent manifest DIR` write one where the files are known to be good"
        )
    })?;
    let clock = Clock::start();
    let mut ledger = args.cache.clone().map(|place| Ledger::open(place, clock.unix_ms())).unwrap_or_default();
    let besides: Vec<PathBuf> =
        [&args.manifest, &args.cache].into_iter().flatten().map(|path| real(path)).collect();
    let began = clock.now();
    let checked =
        with_bar(args.threads, |effort| check(&args.directory, &manifest, &besides, &mut ledger, effort))??;
    let took = clock.now().since(began);
    let Checked { files, bytes, known_bytes, findings, unsaved } = checked;
    if let (Some(cause), Some(cache)) = (unsaved, &args.cache) {
        eprintln!("{} cannot be written, so that all will be read again: {cause}", cache.display());
    }
    for Finding { path, wrong } in &findings {
        eprintln!("{}: {wrong}", args.directory.join(path).display());
    }
    if let Err(fault) = &structure {
        eprintln!("{fault}");
    }
    if !findings.is_empty() || structure.is_err() {
        eprintln!("{directory} is not whole");
        return Ok(1);
    }
    let read = rate(bytes - known_bytes, took);
    let known = match known_bytes {
        0 => String::new(),
        known => format!("; {} were known from before", Bytes(known)),
    };
    println!("{directory} is whole to the last byte: {files} files, {}; {read}{known}", Bytes(bytes));
    Ok(0)
}

/// Writes a manifest. Returns the exit code.
///
/// # Errors
/// When a file cannot be read, or the manifest not be written.
pub fn manifest(args: &ManifestArgs) -> anyhow::Result<u8> {
    let clock = Clock::start();
    let began = clock.now();
    let place = args.output.clone().unwrap_or_else(|| args.directory.join(MANIFEST_NAME));
    let besides = [real(&place)];
    let made = with_bar(args.threads, |effort| make(&args.directory, args.sha256, &besides, effort))??;
    let took = clock.now().since(began);
    write(&place, &made.to_json()).with_context(|| format!("{} cannot be written", place.display()))?;
    let bytes = made.files().filter_map(|(_, content)| content.size).sum();
    println!("{}: {} files, {}; {}", place.display(), made.files().count(), Bytes(bytes), rate(bytes, took));
    Ok(0)
}

/// Fetches what is missing or wrong. Returns the exit code.
///
/// # Errors
/// Names what cannot be had, and why; the next run goes on from there.
pub fn fetch(args: &FetchArgs) -> anyhow::Result<u8> {
    fetch::runtime().context("no threads to fetch with")?.block_on(fetch_on(args))
}

async fn fetch_on(args: &FetchArgs) -> anyhow::Result<u8> {
    let store = fetch::store_at(&args.url)?;
    let manifest = match &args.manifest {
        Some(file) => {
            read_manifest(&args.directory, Some(file))?.with_context(|| format!("no {}", file.display()))?
        }
        None => fetch::manifest_of(&store).await?,
    };
    let besides: Vec<PathBuf> = args.manifest.iter().map(|path| real(path)).collect();
    let clock = Clock::start();
    let began = clock.now();
    let bar = bar()?;
    let progress = |progress| show(&bar, progress);
    let effort = Effort { threads: thread_count(args.threads), progress: &progress };
    let places = Places { store, neighbours: None };
    let fetched =
        fetch::fetch(&places, &manifest, &args.directory, &besides, &mut Ledger::default(), &effort).await;
    bar.finish_and_clear();
    let Fetched { files, bytes, fetched_bytes, given: _ } = fetched?;
    let (directory, took) = (args.directory.display(), clock.now().since(began).as_secs_f64());
    #[allow(clippy::cast_precision_loss)]
    let rate = fetched_bytes as f64 / 1e9 / took.max(1e-9);
    println!(
        "{directory} is whole to the last byte: {files} files, {}; {} fetched in {took:.2} s, {rate:.2} GB/s",
        Bytes(bytes),
        Bytes(fetched_bytes)
    );
    Ok(0)
}

/// Without links, whether the file is there yet or not.
fn real(path: &Path) -> PathBuf {
    let whole = path.canonicalize().or_else(|_| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new(".")).canonicalize()?;
        Ok::<_, std::io::Error>(folder.join(path.file_name().unwrap_or_default()))
    });
    whole.unwrap_or_else(|_| path.to_owned())
}

/// Whole or not at all. What a run that was cut off leaves is hidden: it is no file of the model.
fn write(place: &Path, text: &str) -> std::io::Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let beside = place.with_file_name(format!(".{name}.new"));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, place)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

fn rate(bytes: u64, took: Duration) -> String {
    #[allow(clippy::cast_precision_loss)]
    let rate = bytes as f64 / 1e9 / took.as_secs_f64().max(1e-9);
    format!("read in {:.2} s, {rate:.2} GB/s", took.as_secs_f64())
}

/// Shows how far it has come where somebody looks.
fn with_bar<T>(threads: Option<NonZeroUsize>, act: impl FnOnce(&Effort<'_>) -> T) -> anyhow::Result<T> {
    let bar = bar()?;
    let progress = |progress| show(&bar, progress);
    let result = act(&Effort { threads: thread_count(threads), progress: &progress });
    bar.finish_and_clear();
    Ok(result)
}

fn bar() -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(BAR)?);
    Ok(bar)
}

fn show(bar: &ProgressBar, Progress { done_bytes, all_bytes }: Progress) {
    bar.set_length(all_bytes);
    bar.set_position(done_bytes);
}

fn thread_count(wanted: Option<NonZeroUsize>) -> usize {
    wanted.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}
