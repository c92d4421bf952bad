//! The manifest of a directory: the one that lies in it, or one that is made of its files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use cic_common::fit::directory::{header, shards};
use cic_common::model::Manifest;
use cic_common::model::manifest::{Blake3, Content, MANIFEST_NAME, SIGNATURE_NAME};
use cic_common::model::place::{tree_of, walk};
use cic_common::model::tree::{PieceHash, PieceHasher, Tree, piece_count, piece_span};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

/// What the model in `directory` is: by its own manifest, which has to name the same files, or else by their bytes. `progress`
/// is told of bytes that were hashed, and of all.
///
/// # Errors
/// Names the file that will not do, and why.
pub async fn manifest_of_directory(
    directory: &Path,
    progress: &dyn Fn(u64, u64),
) -> anyhow::Result<Manifest> {
    let names = walk(directory).with_context(|| format!("{} cannot be read", directory.display()))?;
    for shard in shards(directory).map_err(anyhow::Error::msg)?.unwrap_or_default() {
        header(&directory.join(&shard))
            .map_err(|cause| anyhow::anyhow!("{}: {cause}", directory.join(&shard).display()))?;
    }
    let tree = tree_of(directory)?;
    for name in &names {
        let place = directory.join(name);
        let real = place.canonicalize().with_context(|| format!("{} cannot be read", place.display()))?;
        if !real.starts_with(&tree) {
            bail!("{} leads out of the model's directory, to {}", place.display(), real.display());
        }
    }
    let place = directory.join(MANIFEST_NAME);
    if !place.exists() {
        return made(directory, &names, progress).await;
    }
    let manifest = Manifest::parse(&std::fs::read(&place)?).with_context(|| place.display().to_string())?;
    for (path, content) in manifest.files() {
        let length = directory.join(path).metadata().map(|found| found.len());
        let length =
            length.with_context(|| format!("{} is in the manifest", directory.join(path).display()))?;
        if let Some(size) = content.size.filter(|size| *size != length) {
            bail!("{} has {length} bytes, and {size} in the manifest", directory.join(path).display());
        }
    }
    let extra = names.iter().find(|name| manifest.file(name).is_none() && !manifest.says_nothing_of(name));
    match extra {
        None => Ok(manifest),
        Some(extra) => bail!(
            "{} is not in {}: take one of them away, and without a manifest one is made",
            directory.join(extra).display(),
            place.display()
        ),
    }
}

async fn made(
    directory: &Path,
    names: &BTreeSet<String>,
    progress: &dyn Fn(u64, u64),
) -> anyhow::Result<Manifest> {
    let mut files = Vec::new();
    let stamp = |place: &Path| {
        let found = place.metadata()?;
        Ok::<_, io::Error>((found.len(), found.modified()?))
    };
    for name in names.iter().filter(|name| ![MANIFEST_NAME, SIGNATURE_NAME].contains(&name.as_str())) {
        let place = directory.join(name);
        let found = place.metadata().with_context(|| format!("{} cannot be read", place.display()))?;
        if !found.is_file() {
            bail!("{} is no file", place.display());
        }
        files.push((name, stamp(&place)?, place));
    }
    let all = files.iter().map(|(_, (size, _), _)| size).sum();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let mut done = 0;
    let mut manifest = Manifest::default();
    for (name, (size, modified), place) in files {
        let hash = |piece| {
            let place = place.clone();
            async move { tokio::task::spawn_blocking(move || hashed(&place, size, piece)).await? }
        };
        let mut hashes = stream::iter(0..piece_count(size)).map(hash).buffered(threads);
        let mut pieces = Vec::new();
        while let Some(piece) = hashes.try_next().await? {
            done += piece_span(pieces.len() as u64, size).1;
            pieces.push(piece);
            progress(done, all);
        }
        if stamp(&place)? != (size, modified) {
            bail!("{} was changed while it was read", place.display());
        }
        let tree = Tree::new(pieces).context("a file has a piece")?;
        manifest.add(name, Content { size: Some(size), blake3: Some(Blake3::Pieces(tree)), sha256: None })?;
    }
    manifest.complete().with_context(|| directory.display().to_string())
}

fn hashed(place: &Path, size: u64, piece: u64) -> anyhow::Result<PieceHash> {
    let (begin, length) = piece_span(piece, size);
    let mut bytes = vec![0; usize::try_from(length)?];
    let read = File::open(place).and_then(|file| file.read_exact_at(&mut bytes, begin));
    read.with_context(|| format!("{} cannot be read", place.display()))?;
    let mut hasher = PieceHasher::new(piece, size);
    hasher.update(&bytes);
    Ok(hasher.finish())
}
