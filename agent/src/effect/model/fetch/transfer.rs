//! Pieces on their way: several at a time, each hashed before it is written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cic_common::model::Manifest;
use cic_common::model::manifest::{MANIFEST_BYTES_MAX, MANIFEST_NAME};
use cic_common::model::tree::piece_span;
use cic_common::objects::{Store, Stores};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::super::content::{Effort, Progress};
use super::staging::Staging;
use super::wanted::{Wanted, wanted};

/// Pieces under way: with 4 MiB each they bound the memory, and fill 10 Gbit/s at 25 ms to the first byte.
const UNDER_WAY: usize = 8;

/// For one piece, its repetitions within the client of the store included. A store that stalls is asked again.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// Times a piece is asked for that does not come, or comes with other bytes.
const TRIES: u32 = 3;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Of the manifest.
    pub files: usize,
    pub bytes: u64,
    /// Those that came from the store.
    pub fetched_bytes: u64,
}

/// Makes `directory` what `manifest` says: what is missing or wrong of it comes from `store`, and nothing else. Files in
/// `besides`, by their real paths, may lie in it too.
///
/// # Errors
/// Names the file that cannot be had, and why. What had come by then is of use to the next run.
pub async fn fetch(
    store: &Store,
    manifest: &Manifest,
    directory: &Path,
    besides: &[PathBuf],
    effort: &Effort<'_>,
) -> anyhow::Result<Fetched> {
    let staging = Staging::open(directory)?;
    let files = wanted(manifest, directory, besides, &staging, effort)?;
    let needed: u64 = files.iter().map(Wanted::missing_bytes).sum();
    staging.require_room(needed)?;
    let (done_bytes, fetched_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    for file in &files {
        let opened = staging.file(&file.path, file.size, file.is_staged);
        let opened = Arc::new(opened.with_context(|| format!("{} cannot be written", file.path))?);
        let one = |piece: u64| {
            let opened = Arc::clone(&opened);
            let (done_bytes, fetched_bytes) = (&done_bytes, &fetched_bytes);
            async move {
                let (begin, length) = piece_span(piece, file.size);
                let bytes = match here(file, piece) {
                    Some(bytes) => bytes,
                    None => {
                        fetched_bytes.fetch_add(length, Ordering::Relaxed);
                        piece_of(store, file, piece).await?
                    }
                };
                // It is in the page cache after a moment, and on the disk by the sync of the whole file.
                let write = tokio::task::spawn_blocking(move || opened.write_all_at(&bytes, begin));
                write.await?.with_context(|| format!("{} cannot be written", file.path))?;
                let done_bytes = done_bytes.fetch_add(length, Ordering::Relaxed) + length;
                (effort.progress)(Progress { done_bytes, all_bytes: needed });
                anyhow::Ok(())
            }
        };
        let pieces = stream::iter(file.missing.iter().copied()).map(one);
        pieces.buffer_unordered(UNDER_WAY).try_collect::<()>().await?;
        let published = staging.publish(&file.path, &opened);
        published.with_context(|| format!("{} cannot be put in place", file.path))?;
    }
    let text = manifest.to_json();
    let written = staging.file(MANIFEST_NAME, text.len() as u64, false).and_then(|file| {
        file.write_all_at(text.as_bytes(), 0)?;
        staging.publish(MANIFEST_NAME, &file)
    });
    written.context("the manifest cannot be written")?;
    staging.finish(manifest).with_context(|| format!("{} cannot be put in place", directory.display()))?;
    Ok(Fetched {
        files: manifest.files().count(),
        bytes: manifest.files().filter_map(|(_, content)| content.size).sum(),
        fetched_bytes: fetched_bytes.into_inner(),
    })
}

/// One piece out of the file that is wrong elsewhere. It is looked at once more: the file may have been changed.
fn here(file: &Wanted, piece: u64) -> Option<Bytes> {
    let place = file.there(piece)?;
    let (begin, length) = piece_span(piece, file.size);
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    File::open(place).and_then(|opened| opened.read_exact_at(&mut bytes, begin)).ok()?;
    file.has(piece, &bytes).then(|| bytes.into())
}

/// One piece with the bytes that the manifest says.
async fn piece_of(store: &Store, file: &Wanted, piece: u64) -> anyhow::Result<Bytes> {
    let (begin, length) = piece_span(piece, file.size);
    if length == 0 {
        ensure!(file.has(piece, &[]), "the manifest has {} empty, and another hash for it", file.path);
        return Ok(Bytes::new());
    }
    let mut last = String::new();
    for _ in 0..TRIES {
        match store.get_range(&file.path, begin, length, PIECE_WITHIN).await {
            Err(cause) => last = cause,
            Ok(None) => bail!("{} has no {}", store.name, file.path),
            Ok(Some(bytes)) if bytes.len() as u64 != length => {
                last = format!("{} bytes came for {length}", bytes.len());
            }
            Ok(Some(bytes)) if file.has(piece, &bytes) => return Ok(bytes),
            Ok(Some(_)) => last = "it has not the bytes of the manifest there".to_owned(),
        }
    }
    let end = begin + length - 1;
    bail!("{}: {}, bytes {begin} to {end}: {last} ({TRIES} times)", store.name, file.path)
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
