//! Pieces on their way: several at a time, each hashed before it is written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cic_common::id::NodeId;
use cic_common::model::Manifest;
use cic_common::model::manifest::{MANIFEST_BYTES_MAX, MANIFEST_NAME};
use cic_common::model::tree::piece_span;
use cic_common::objects::{Store, Stores};
use cic_common::time::unix_ms;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::super::content::{Effort, Ledger, Progress, Stamp, digest_of};
use super::neighbour::Neighbours;
use super::staging::Staging;
use super::wanted::{Wanted, wanted};

/// Pieces under way: with 4 MiB each they bound the memory, and fill 8 Gbit/s at 25 ms to the first byte.
const UNDER_WAY: usize = 6;

/// For one piece, its repetitions within the client of the store included. A store that stalls is asked again.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// Times a piece is asked for that does not come, or comes with other bytes.
const TRIES: u32 = 3;

/// Where pieces come from.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    pub store: &'a Store,
    /// Asked first, as far as they have room; the store at the same time for the rest.
    pub neighbours: Option<&'a Neighbours>,
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

/// A file that is being made whole.
struct Target {
    wanted: Wanted,
    opened: File,
    /// Pieces that it lacks still.
    lacking: AtomicU64,
    /// As it was once it was whole and in its place.
    stamp: OnceLock<Stamp>,
}

/// Makes `directory` what `manifest` says: what is missing or wrong of it comes from `places`, and nothing else. Files in
/// `besides`, by their real paths, may lie in it too. What `ledger` knows is not read, and what was made whole it knows then.
///
/// # Errors
/// Names the file that cannot be had, and why. What had come by then is of use to the next run.
pub async fn fetch(
    places: &Places<'_>,
    manifest: &Manifest,
    directory: &Path,
    besides: &[PathBuf],
    ledger: &mut Ledger,
    effort: &Effort<'_>,
) -> anyhow::Result<Fetched> {
    let staging = Staging::open(directory)?;
    let files = wanted(manifest, directory, besides, ledger, &staging, effort)?;
    let needed: u64 = files.iter().map(Wanted::missing_bytes).sum();
    staging.require_room(needed)?;
    let open = |wanted: Wanted| {
        let opened = staging.file(&wanted.path, wanted.size, wanted.is_staged);
        let opened = opened.with_context(|| format!("{} cannot be written", wanted.path))?;
        let lacking = AtomicU64::new(wanted.missing.len() as u64);
        anyhow::Ok(Arc::new(Target { wanted, opened, lacking, stamp: OnceLock::new() }))
    };
    let targets = files.into_iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let (done_bytes, fetched_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let one = |(target, piece): (&Arc<Target>, u64)| {
        let (target, staging) = (Arc::clone(target), &staging);
        let (done_bytes, fetched_bytes) = (&done_bytes, &fetched_bytes);
        async move {
            let (_, length) = piece_span(piece, target.wanted.size);
            if bring(places, &target, piece).await? == Brought::FromElsewhere {
                fetched_bytes.fetch_add(length, Ordering::Relaxed);
            }
            let done_bytes = done_bytes.fetch_add(length, Ordering::Relaxed) + length;
            (effort.progress)(Progress { done_bytes, all_bytes: needed });
            if target.lacking.fetch_sub(1, Ordering::Relaxed) == 1 {
                publish(staging, &target).await?;
            }
            anyhow::Ok(())
        }
    };
    for target in targets.iter().filter(|target| target.wanted.missing.is_empty()) {
        publish(&staging, target).await?;
    }
    // Of all files in one row: while the last pieces of one come, or it is written out, the next has begun.
    let pieces = targets.iter().flat_map(pieces_of);
    let pieces = stream::iter(pieces).map(one);
    pieces.buffer_unordered(UNDER_WAY).try_collect::<()>().await?;
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
        fetched_bytes: fetched_bytes.into_inner(),
        given: places.neighbours.map(Neighbours::given).unwrap_or_default(),
    })
}

fn pieces_of(target: &Arc<Target>) -> impl Iterator<Item = (&Arc<Target>, u64)> {
    target.wanted.missing.iter().map(move |piece| (target, *piece))
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

/// Has a file that is whole on the disk, and in its place.
async fn publish(staging: &Staging, target: &Arc<Target>) -> anyhow::Result<()> {
    let synced = Arc::clone(target);
    let synced = tokio::task::spawn_blocking(move || synced.opened.sync_all()).await?;
    let published = synced.and_then(|()| staging.publish(&target.wanted.path, &target.opened));
    let stamped = published.and_then(|()| target.opened.metadata());
    let stamped = stamped.map(|found| target.stamp.get_or_init(|| Stamp::of(&found)));
    stamped.map(drop).with_context(|| format!("{} cannot be put in place", target.wanted.path))
}

/// Where a piece came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brought {
    FromHere,
    FromElsewhere,
}

/// Gets one piece and writes it.
async fn bring(places: &Places<'_>, target: &Arc<Target>, piece: u64) -> anyhow::Result<Brought> {
    let (begin, length) = piece_span(piece, target.wanted.size);
    if target.wanted.there(piece).is_some() {
        let kept = Arc::clone(target);
        let here = tokio::task::spawn_blocking(move || here(&kept.wanted, piece)).await?;
        if let Some(bytes) = here
            && written(target, piece, vec![bytes]).await?
        {
            return Ok(Brought::FromHere);
        }
    }
    if length == 0 {
        let path = &target.wanted.path;
        ensure!(target.wanted.has(piece, &[]), "the manifest has {path} empty, and another hash for it");
        return Ok(Brought::FromElsewhere);
    }
    if let Some(neighbours) = places.neighbours
        && let Some(turn) = neighbours.turn()
        && let Some(bytes) = neighbours.piece(&turn, &target.wanted.path, begin, length).await
    {
        if written(target, piece, vec![bytes]).await? {
            neighbours.credit(&turn, length);
            return Ok(Brought::FromElsewhere);
        }
        neighbours.leave(&turn, "it has other bytes");
    }
    let (store, path) = (places.store, &target.wanted.path);
    let mut last = String::new();
    for _ in 0..TRIES {
        match store.get_range(path, begin, length, PIECE_WITHIN).await {
            Err(cause) => last = cause,
            Ok(None) => bail!("{} has no {path}", store.name),
            Ok(Some(parts)) => {
                let came: u64 = parts.iter().map(|part| part.len() as u64).sum();
                if came != length {
                    last = format!("{came} bytes came for {length}");
                } else if written(target, piece, parts).await? {
                    return Ok(Brought::FromElsewhere);
                } else {
                    last = "it has not the bytes of the manifest there".to_owned();
                }
            }
        }
    }
    let end = begin + length - 1;
    bail!("{}: {path}, bytes {begin} to {end}: {last} ({TRIES} times)", store.name)
}

/// Writes a piece, if these are its bytes. It is in the page cache then, and on the disk by the sync of the whole file.
async fn written(target: &Arc<Target>, piece: u64, parts: Vec<Bytes>) -> anyhow::Result<bool> {
    let kept = Arc::clone(target);
    let write = move || {
        let Target { wanted, opened, .. } = &*kept;
        if !wanted.has(piece, &parts) {
            return Ok(false);
        }
        let (mut at, _) = piece_span(piece, wanted.size);
        for part in parts {
            opened.write_all_at(&part, at)?;
            at += part.len() as u64;
        }
        Ok::<_, std::io::Error>(true)
    };
    let written = tokio::task::spawn_blocking(write).await?;
    written.with_context(|| format!("{} cannot be written", target.wanted.path))
}

/// One piece out of the file that is wrong elsewhere. It is looked at once more: the file may have been changed.
fn here(file: &Wanted, piece: u64) -> Option<Bytes> {
    let place = file.there(piece)?;
    let (begin, length) = piece_span(piece, file.size);
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    File::open(place).and_then(|opened| opened.read_exact_at(&mut bytes, begin)).ok()?;
    Some(bytes.into())
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
    let found = store.get(MANIFEST_NAME, MANIFEST_BYTES_MAX, PIECE_WITHIN).await;
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
