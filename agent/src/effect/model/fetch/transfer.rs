//! Pieces on their way: several at a time, each hashed before it is written.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cic_common::model::Manifest;
use cic_common::model::manifest::MANIFEST_NAME;
use cic_common::model::tree::{PieceHasher, piece_span};
use cic_common::objects::Store;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::super::content::{Effort, Ledger, Progress, Wrong, check};
use super::place::Place;
use super::want::{WantedFile, want};

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

/// Makes `directory` what `manifest` says: what is missing or wrong of it comes from `store`, and nothing else.
///
/// # Errors
/// Names the file that cannot be had, and why. What had come by then is of use to the next run.
pub async fn fetch(
    store: &Store,
    manifest: &Manifest,
    directory: &Path,
    effort: &Effort<'_>,
) -> anyhow::Result<Fetched> {
    let place = Place::open(directory)?;
    let paths = lacking(manifest, directory, &place, effort)?;
    let files = want(manifest, &paths, &place, effort)?;
    let needed: u64 = files.iter().map(WantedFile::missing_bytes).sum();
    place.require_room(needed)?;
    let done_bytes = AtomicU64::new(0);
    for file in &files {
        let opened = place.file(&file.path, file.size);
        let opened = Arc::new(opened.with_context(|| format!("{} cannot be written", file.path))?);
        let one = |piece: u64| {
            let opened = Arc::clone(&opened);
            let done_bytes = &done_bytes;
            async move {
                let (begin, length) = piece_span(piece, file.size);
                let bytes = piece_of(store, file, piece).await?;
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
        place
            .publish(&file.path, &opened)
            .with_context(|| format!("{} cannot be put in place", file.path))?;
    }
    let text = manifest.to_json();
    let written = place.file(MANIFEST_NAME, text.len() as u64).and_then(|file| {
        file.write_all_at(text.as_bytes(), 0)?;
        place.publish(MANIFEST_NAME, &file)
    });
    written.context("the manifest cannot be written")?;
    place.finish().with_context(|| format!("{} cannot be put in place", directory.display()))?;
    let bytes = manifest.files().filter_map(|(_, content)| content.size).sum();
    Ok(Fetched { files: manifest.files().count(), bytes, fetched_bytes: needed })
}

/// Files that are missing or wrong; the wrong ones are taken out of the directory.
fn lacking(
    manifest: &Manifest,
    directory: &Path,
    place: &Place,
    effort: &Effort<'_>,
) -> anyhow::Result<Vec<String>> {
    if !directory.exists() {
        return Ok(manifest.files().map(|(path, _)| path.to_owned()).collect());
    }
    // What the directory itself would be hashed for is no part of what is to come.
    let quietly = Effort { threads: effort.threads, progress: &|_| {} };
    let checked = check(directory, manifest, &[], &mut Ledger::default(), &quietly)?;
    let mut paths = Vec::new();
    for finding in checked.findings {
        match finding.wrong {
            Wrong::Missing => {}
            Wrong::Extra | Wrong::Kind(_) => {
                bail!("{}: {}; take it away first", directory.join(&finding.path).display(), finding.wrong)
            }
            Wrong::Length { .. } | Wrong::Bytes { .. } | Wrong::Changed | Wrong::Unreadable { .. } => {
                let taken = place.take(&finding.path);
                taken.with_context(|| format!("{} cannot be taken out", finding.path))?;
            }
        }
        paths.push(finding.path);
    }
    Ok(paths)
}

/// One piece with the bytes that the manifest says.
async fn piece_of(store: &Store, file: &WantedFile, piece: u64) -> anyhow::Result<Bytes> {
    let (begin, length) = piece_span(piece, file.size);
    if length == 0 {
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
            Ok(Some(bytes)) => {
                let mut hasher = PieceHasher::new(piece, file.size);
                hasher.update(&bytes);
                if file.hash_of(piece) == Some(&hasher.finish()) {
                    return Ok(bytes);
                }
                last = "it has not the bytes of the manifest there".to_owned();
            }
        }
    }
    let end = begin + length - 1;
    bail!("{}: {}, bytes {begin} to {end}: {last} ({TRIES} times)", store.name, file.path)
}

/// The manifest that lies with the model in `store`.
///
/// # Errors
/// When there is none, or it is of no use.
pub async fn manifest_of(store: &Store) -> anyhow::Result<Manifest> {
    const BYTES_MAX: u64 = cic_common::model::manifest::MANIFEST_BYTES_MAX;
    let found = store.get(MANIFEST_NAME, BYTES_MAX, PIECE_WITHIN).await;
    let found = found.map_err(anyhow::Error::msg).with_context(|| store.name.to_string())?;
    ensure!(
        found.is_some(),
        "{} has no {MANIFEST_NAME}: have `cic-agent manifest DIR` write one where the files are known to be good, and put it \
         beside them, or name one with --manifest",
        store.name
    );
    Manifest::parse(&found.unwrap_or_default()).with_context(|| format!("{}/{MANIFEST_NAME}", store.name))
}
