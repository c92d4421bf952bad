//! What it costs to know that a model is whole: by its headers, and to the last byte, beside the tools people use for that.
//!
//! And what it costs to have it: fetched from a local server of the S3 protocol beside other clients, and repaired.
//!
//! A set of random shards of a gibibyte each is written, with headers and an index, and read from the page cache by all of
//! them in turn, in each round in the same order. Then one byte is flipped, and the place is to be named.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use crate::model_fetch::{PEERS, Round, Stand};
use crate::rig::Bins;
use crate::table::{Table, percentile};

/// Shards of the set, a gibibyte each.
pub(crate) const GIB: NonZeroUsize = NonZeroUsize::new(8).unwrap();

const ROUNDS: usize = 3;

/// A fetch takes seconds, in which more happens beside it.
const FETCH_ROUNDS: usize = 5;

const SHARD_BYTES: usize = 1 << 30;

const BLOCK_BYTES: usize = 1 << 20;

/// Most that the agent's process may take of memory.
const RSS_MIB_MAX: f64 = 64.0;

/// Of what b3sum reads in a second with as many threads.
const OF_B3SUM_MIN: f64 = 0.9;

/// Of what the best of [`PEERS`] brings in a second from the same server.
const OF_PEERS_MIN: f64 = 1.0;

const REPAIR_PERCENT_MAX: f64 = 1.0;

pub(crate) fn run(gib: NonZeroUsize) -> anyhow::Result<Table> {
    let bins = Bins::built()?;
    let root = tempfile::tempdir()?;
    let shards = write_set(root.path(), gib.get())?;
    #[allow(clippy::cast_precision_loss)]
    let gigabytes =
        shards.iter().map(|shard| shard.metadata().map_or(0, |found| found.len())).sum::<u64>() as f64 / 1e9;
    let threads = std::thread::available_parallelism()?.get();
    let agent = |words: &[&str]| {
        let mut command = Command::new(&bins.agent);
        command.args(words).arg(root.path());
        command
    };
    let made = seconds(&mut agent(&["manifest"]))?;
    let (mut structure, mut deep) = (Vec::new(), Vec::new());
    let mut others: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..ROUNDS {
        structure.push(seconds(&mut agent(&["verify"]))?);
        deep.push(seconds(&mut agent(&["verify", "--deep"]))?);
    }
    let rss_checked_mib = rss_mib()?;
    let store = Stand::begin(root.path())?;
    let rss_pushed_mib = rss_mib()?;
    store.ours(&bins.agent)?;
    // Before any program of others was waited for.
    let rss_fetched_mib = rss_mib()?;
    let peers = store.beside(&bins.agent, FETCH_ROUNDS)?;
    let repaired = store.repaired(&bins.agent)?;
    for (name, words) in tools(threads) {
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            match seconds(Command::new(words[0]).args(&words[1..]).args(&shards)) {
                Ok(seconds) => took.push(seconds),
                Err(error) => eprintln!("{name} is left out: {error:#}"),
            }
            // Each beside one of ours: a machine that is shared has good and bad moments.
            deep.push(seconds(&mut agent(&["verify", "--deep"]))?);
        }
        others.push((name, took));
    }
    let mut table = Table::default();
    table.row("manifest written", gigabytes / made, "GB/s", None);
    table.row("structure, median", percentile(&mut structure, 50.0) * 1000.0, "ms", None);
    let ours = gigabytes / percentile(&mut deep, 50.0);
    table.row(&format!("verify --deep, {threads} threads, median of {}", deep.len()), ours, "GB/s", None);
    for (name, mut took) in others.into_iter().filter(|(_, took)| !took.is_empty()) {
        let rate = gigabytes / percentile(&mut took, 50.0);
        table.row(&name, rate, "GB/s", None);
        if name.starts_with("b3sum") {
            table.row_at_least("verify --deep, of b3sum", ours / rate, "", OF_B3SUM_MIN);
        }
    }
    let mut least: Option<f64> = None;
    for (name, took) in peers.into_iter().filter(|(_, took)| !took.is_empty()) {
        let median = |of: fn(&Round) -> f64| percentile(&mut took.iter().map(of).collect::<Vec<f64>>(), 50.0);
        table.row(name, gigabytes / median(|round| round.peer.ended), "GB/s", None);
        let on_disk = gigabytes / median(|round| round.peer.synced);
        table.row(&format!("{name}, and all of it on the disk"), on_disk, "GB/s", None);
        table.row(
            &format!("fetched after each of {name}'s"),
            gigabytes / median(|round| round.ours),
            "GB/s",
            None,
        );
        let of_peer = median(|round| round.peer.synced / round.ours);
        table.row(
            &format!("of {name} that is on the disk, each time, median of {}", took.len()),
            of_peer,
            "",
            None,
        );
        least = Some(least.map_or(of_peer, |least| least.min(of_peer)));
    }
    match least {
        Some(least) => {
            table.row_at_least("fetched, of the best of these that is on the disk", least, "", OF_PEERS_MIN);
        }
        None => eprintln!("none of {PEERS:?} is here to be measured beside"),
    }
    table.row("repair of one flipped byte: moved, of all bytes", repaired, "%", Some(REPAIR_PERCENT_MAX));
    table.row("resident memory, most of any check", rss_checked_mib, "MiB", Some(RSS_MIB_MAX));
    table.row("resident memory, most of these and the push", rss_pushed_mib, "MiB", Some(RSS_MIB_MAX));
    table.row("resident memory, most of these and a fetch", rss_fetched_mib, "MiB", Some(RSS_MIB_MAX));
    flipped(&bins.agent, root.path(), &shards[shards.len() / 2])?;
    Ok(table)
}

/// Their names, and their words before the files.
fn tools(threads: usize) -> Vec<(String, Vec<&'static str>)> {
    // One argument, which lives as long as the program.
    let count: &'static str = Box::leak(threads.to_string().into_boxed_str());
    vec![
        (format!("b3sum, {threads} threads"), vec!["b3sum", "--num-threads", count]),
        ("sha256sum".to_owned(), vec!["sha256sum"]),
        ("cat".to_owned(), vec!["cat"]),
    ]
}

pub(crate) fn seconds(command: &mut Command) -> anyhow::Result<f64> {
    let began = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    let took = began.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(took)
}

/// The most that any process waited for so far has taken.
#[allow(clippy::cast_precision_loss)]
fn rss_mib() -> anyhow::Result<f64> {
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() as f64 / 1024.0)
}

/// That a flipped byte is found, in its place.
fn flipped(agent: &Path, directory: &Path, shard: &Path) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).open(shard)?;
    let at = SHARD_BYTES as u64 / 3;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    let output = Command::new(agent).args(["verify", "--deep"]).arg(directory).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let name = shard.file_name().context("a shard has a name")?.to_string_lossy();
    let piece = at / (4 << 20) * (4 << 20);
    if output.status.success() || !said.contains(&*name) || !said.contains(&piece.to_string()) {
        bail!("a flipped byte at {at} of {name} was not told: {said}");
    }
    println!("one byte flipped at {at} of {name}: {}", said.lines().next().unwrap_or_default());
    Ok(())
}

/// Random shards with one tensor each, and their index.
fn write_set(directory: &Path, count: usize) -> anyhow::Result<Vec<PathBuf>> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut block = vec![0; BLOCK_BYTES];
    let (mut shards, mut weight_map) = (Vec::new(), serde_json::Map::new());
    for number in 1..=count {
        let name = format!("model-{number:05}-of-{count:05}.safetensors");
        let path = directory.join(&name);
        let tensor = format!("w{number}");
        let header =
            json!({ &tensor: { "dtype": "U8", "shape": [SHARD_BYTES], "data_offsets": [0, SHARD_BYTES] } });
        let header = header.to_string();
        let mut file = BufWriter::new(File::create(&path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for _ in 0..SHARD_BYTES / BLOCK_BYTES {
            random.fill(&mut block);
            file.write_all(&block)?;
        }
        file.flush()?;
        weight_map.insert(tensor, name.into());
        shards.push(path);
    }
    let index = json!({ "weight_map": weight_map }).to_string();
    std::fs::write(directory.join("model.safetensors.index.json"), index)?;
    Ok(shards)
}
