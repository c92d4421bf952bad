//! The whole of a fetch: what is lacking, who brings it, and its end.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use cic_common::id::NodeId;
use cic_common::model::Manifest;
use cic_common::model::manifest::{MANIFEST_BYTES_MAX, MANIFEST_NAME};
use cic_common::objects::{Store, Stores};
use cic_common::time::unix_ms;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::super::content::{Effort, Ledger, Progress, Stamp, digest_of};
use super::bring::{Party, from_here, from_neighbours, from_store};
use super::neighbour::{self, Neighbours};
use super::staging::Staging;
use super::target::{Tally, Target};
use super::wanted::{Wanted, wanted};

/// Questions to the store at once, but those for pieces that a neighbour did not give.
const STORE_UNDER_WAY: usize = 8;

/// Pieces that are copied at once.
const COPIES_UNDER_WAY: usize = 4;

/// For the manifest.
const MANIFEST_WITHIN: Duration = Duration::from_secs(60);

/// Where pieces come from.
#[derive(Debug, Clone)]
pub struct Places {
    pub store: Store,
    /// Asked at the same time as the store.
    pub neighbours: Option<Arc<Neighbours>>,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Of the manifest.
    pub files: usize,
    pub bytes: u64,
    /// Those that came from elsewhere.
    pub fetched_bytes: u64,
    /// Those of them that other nodes gave.
    pub given: Vec<(NodeId, u64)>,
}

/// Makes `directory` what `manifest` says: what is missing or wrong of it comes from `places`, and nothing else. Files in
/// `besides`, by their real paths, may lie in it too. What `ledger` knows is not read, and what was made whole it knows then.
///
/// # Errors
/// Names the file that cannot be had, and why. What had come by then is of use to the next run.
pub async fn fetch(
    places: &Places,
    manifest: &Manifest,
    directory: &Path,
    besides: &[PathBuf],
    ledger: &mut Ledger,
    effort: &Effort<'_>,
) -> anyhow::Result<Fetched> {
    let staging = Arc::new(Staging::open(directory)?);
    let files = wanted(manifest, directory, besides, ledger, &staging, effort)?;
    let all_bytes: u64 = files.iter().map(Wanted::missing_bytes).sum();
    staging.require_room(all_bytes)?;
    let targets = files.into_iter().map(|wanted| Target::open(wanted, &staging));
    let targets = targets.collect::<anyhow::Result<Vec<_>>>()?;
    let tally = Arc::new(Tally::default());
    let mut bringing = std::pin::pin!(bring_all(places, &targets, &tally));
    loop {
        // Cancel safe: word of more bytes that is missed is followed by other word, or by the end.
        let ended = tokio::select! {
            ended = &mut bringing => Some(ended),
            () = tally.came.notified() => None,
        };
        (effort.progress)(Progress { done_bytes: tally.done_bytes.load(Ordering::Relaxed), all_bytes });
        if let Some(ended) = ended {
            break ended?;
        }
    }
    let fetched_bytes = tally.fetched_bytes.load(Ordering::Relaxed);
    let text = manifest.to_json();
    let written = staging.file(MANIFEST_NAME, text.len() as u64, false).and_then(|file| {
        file.write_all_at(text.as_bytes(), 0)?;
        file.sync_all()?;
        staging.publish(MANIFEST_NAME, &file)
    });
    written.context("the manifest cannot be written")?;
    staging.finish(manifest).with_context(|| format!("{} cannot be put in place", directory.display()))?;
    if let Err(error) = learn(&targets, manifest, directory, ledger) {
        eprintln!("what was fetched is not remembered, and read once more: {error}");
    }
    Ok(Fetched {
        files: manifest.files().count(),
        bytes: manifest.files().filter_map(|(_, content)| content.size).sum(),
        fetched_bytes,
        given: places.neighbours.as_deref().map(Neighbours::given).unwrap_or_default(),
    })
}

/// What is here is copied while all else comes, of all files in one row: while the last pieces of one come, or it is written out,
/// the next has begun.
async fn bring_all(places: &Places, targets: &[Arc<Target>], tally: &Arc<Tally>) -> anyhow::Result<()> {
    let party = Party { places: places.clone(), runs: Arc::default(), tally: Arc::clone(tally) };
    let mut here = Vec::new();
    for target in targets {
        let missing = &target.wanted.missing;
        if missing.is_empty() {
            tally.publish(target).await?;
        }
        let is_here = |piece: &u64| target.wanted.there(*piece).is_some();
        let (kept, elsewhere): (Vec<u64>, Vec<u64>) = missing.iter().partition(|piece| is_here(piece));
        here.extend(kept.into_iter().map(|piece| (target, piece)));
        party.runs.add(target, elsewhere);
    }
    let copied = stream::iter(here).map(|(target, piece)| async move {
        let is_copied = from_here(target, piece, tally).await?;
        anyhow::Ok((!is_copied).then_some((target, piece)))
    });
    let copied = copied.buffered(COPIES_UNDER_WAY).try_collect::<Vec<_>>();
    // Both to their ends: nothing is to be written after this has returned.
    let (brought, copied) = tokio::join!(bring(&party), copied);
    brought?;
    for (target, piece) in copied?.into_iter().flatten() {
        party.runs.add(target, [piece]);
    }
    bring(&party).await
}

/// Has everybody take from the row until nothing is left in it.
async fn bring(party: &Party) -> anyhow::Result<()> {
    // Not the supervisor's: they end with this call, which says how they ended.
    let mut tasks = JoinSet::new();
    if let Some(neighbours) = &party.places.neighbours {
        // Before the store has taken all of a small model.
        for _ in 0..neighbour::ASKERS {
            let first = party.runs.take(1);
            tasks.spawn(from_neighbours(party.clone(), Arc::clone(neighbours), first));
        }
    }
    for _ in 0..STORE_UNDER_WAY {
        tasks.spawn(from_store(party.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended.map_err(anyhow::Error::from).flatten() {
            tasks.shutdown().await;
            return Err(error);
        }
    }
    Ok(())
}

/// Remembers the files that were written, and not touched since: each of their pieces was hashed.
fn learn(
    targets: &[Arc<Target>],
    manifest: &Manifest,
    directory: &Path,
    ledger: &mut Ledger,
) -> std::io::Result<()> {
    ledger.advance(unix_ms());
    let directory = directory.canonicalize()?;
    for Target { wanted, opened, stamp, .. } in targets.iter().map(|target| &**target) {
        let digest = manifest.file(&wanted.path).and_then(|content| digest_of(content, wanted.size));
        let now = Stamp::of(&opened.metadata()?);
        if let Some(digest) = digest.filter(|_| stamp.get() == Some(&now)) {
            ledger.learn(directory.join(&wanted.path), now, digest);
        }
    }
    ledger.save()
}

/// What [`fetch`] runs on: each thread takes bytes from sockets, hashes and writes them, and may have to wait for the disk.
///
/// # Errors
/// When the kernel has no more threads.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(STORE_UNDER_WAY).enable_all().build()
}

/// The store at `url`, with the credentials of this process's environment.
///
/// # Errors
/// When the URL is of no use.
pub fn store_at(url: &str) -> anyhow::Result<Store> {
    let stores = Stores::open([url]).map_err(|(_, error)| error);
    stores.with_context(|| url.to_owned())?.all.pop().context("one URL is one store")
}

/// The manifest that lies with the model in `store`.
///
/// # Errors
/// When there is none, or it is of no use.
pub async fn manifest_of(store: &Store) -> anyhow::Result<Manifest> {
    let found = store.get(MANIFEST_NAME, MANIFEST_BYTES_MAX, MANIFEST_WITHIN).await;
    let found = found.map_err(anyhow::Error::msg).with_context(|| store.name.to_string())?;
    let json = found.with_context(|| {
        format!(
            "{} has no {MANIFEST_NAME}: have `cic-agent manifest DIR` write one where the files are known to be good, and put it \
             beside them, or name one with --manifest",
            store.name
        )
    })?;
    Manifest::parse(&json).with_context(|| format!("{}/{MANIFEST_NAME}", store.name))
}
