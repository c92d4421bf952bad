//! From an origin into a store.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cic_common::model::Manifest;
use cic_common::model::manifest::{Blake3, Content, MANIFEST_BYTES_MAX, MANIFEST_NAME};
use cic_common::model::tree::{PIECE_BYTES, PieceHasher, Tree, piece_span};
use cic_common::objects::{Labels, Store, Upload, part_bytes};

use super::origin::{Origin, Reader};

/// For one request, its repetitions within the client of the store included.
const WITHIN: Duration = Duration::from_secs(120);

/// Times a piece is read that does not come, or comes with other bytes.
const TRIES: u32 = 3;

/// What a browser or a node's proxy keeps, in seconds: a day.
const MAX_AGE_S: u64 = 86_400;

/// How it is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Whether another model that is published there may be taken away.
    pub replaces: bool,
    /// How long a cache between the store and the nodes may keep the files, which never change under their names.
    pub edge_ttl: Duration,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    pub files: usize,
    pub bytes: u64,
    /// Those that were not there.
    pub sent_bytes: u64,
}

/// One file and what it ought to be.
struct Item<'a> {
    path: &'a str,
    size: u64,
    tree: &'a Tree,
}

/// The manifest of the model that is published in `store`; `None` without one.
///
/// # Errors
/// When the store does not answer, or what lies there is no manifest.
pub async fn manifest_in(store: &Store) -> anyhow::Result<Option<Manifest>> {
    let found = store.get(MANIFEST_NAME, MANIFEST_BYTES_MAX, WITHIN).await;
    let found = found.map_err(|cause| anyhow::anyhow!("{}: {cause}", store.name))?;
    let parsed = found.map(|json| Manifest::parse(&json)).transpose();
    parsed.with_context(|| format!("{}/{MANIFEST_NAME}", store.name))
}

/// Makes `to` have what `manifest` says, from `origin`: files first, the manifest last. `progress` is told of bytes that are
/// there, and of all.
///
/// # Errors
/// Names the file that cannot be read or written, or that is not what the manifest says; what was sent whole by then is not
/// sent again by the next run.
pub async fn publish(
    origin: &Origin,
    manifest: &Manifest,
    to: &Store,
    terms: &Terms,
    progress: &dyn Fn(u64, u64),
) -> anyhow::Result<Published> {
    let items =
        manifest.files().map(|(path, content)| item(path, content)).collect::<anyhow::Result<Vec<_>>>()?;
    let there = manifest_in(to).await?;
    let is_known = there.as_ref().is_some_and(|there| is_same(there, manifest));
    if there.is_some() && !is_known {
        ensure!(
            terms.replaces,
            "{} holds another model: publish this one under another URL, as nodes and caches keep what they have fetched, or \
             give --replace",
            to.name
        );
        // Nobody is to fetch a mixture.
        let deleted = to.delete(MANIFEST_NAME, WITHIN).await;
        deleted.map_err(|cause| anyhow::anyhow!("{}/{MANIFEST_NAME} cannot be removed: {cause}", to.name))?;
    }
    let from = Reader::new(origin);
    let bytes = items.iter().map(|item| item.size).sum();
    let (mut done, mut sent_bytes) = (0, 0);
    for item in &items {
        if is_there(to, item).await? {
            done += item.size;
            progress(done, bytes);
            continue;
        }
        let mut sent = |length| {
            done += length;
            sent_bytes += length;
            progress(done, bytes);
        };
        send(&from, item, to, terms, &mut sent).await?;
    }
    if !is_known {
        // Asked for anew each time: it says which model it is.
        let labels = Labels { cache_control: "no-cache".to_owned(), digest: None };
        let put = to.put_labelled(MANIFEST_NAME, vec![manifest.to_json().into()], &labels, WITHIN).await;
        put.map_err(|cause| anyhow::anyhow!("{}/{MANIFEST_NAME} cannot be written: {cause}", to.name))?;
    }
    let before = there.iter().flat_map(Manifest::files).map(|(path, _)| path);
    for path in before.filter(|path| manifest.file(path).is_none()) {
        // Whoever mounts the store would take them for a part of the model.
        let deleted = to.delete_literal(path, WITHIN).await;
        deleted.map_err(|cause| {
            anyhow::anyhow!("{}/{path} of the model before cannot be removed: {cause}", to.name)
        })?;
    }
    Ok(Published { files: items.len(), bytes, sent_bytes })
}

fn item<'a>(path: &'a str, content: &'a Content) -> anyhow::Result<Item<'a>> {
    match (content.size, &content.blake3) {
        (Some(size), Some(Blake3::Pieces(tree))) => Ok(Item { path, size, tree }),
        _ => bail!(
            "the manifest has no hashes of the pieces of {path}, by which nodes fetch it: take it away, and one that has them \
             is made"
        ),
    }
}

/// Whether both name the same files.
fn is_same(one: &Manifest, other: &Manifest) -> bool {
    let of = |manifest: &Manifest| -> Vec<(String, Option<u64>, Option<String>)> {
        let of_file = |(path, content): (&str, &Content)| {
            let root = content.blake3.as_ref().map(|blake3| blake3.root().to_hex().to_string());
            (path.to_owned(), content.size, root)
        };
        manifest.files().map(of_file).collect()
    };
    of(one) == of(other)
}

/// Whether the store has the file, by the digest that it was labelled with; of a directory, by its bytes.
async fn is_there(to: &Store, item: &Item<'_>) -> anyhow::Result<bool> {
    let head = to.head(item.path, WITHIN).await;
    let head = head.map_err(|cause| anyhow::anyhow!("{}/{}: {cause}", to.name, item.path))?;
    let Some(head) = head.filter(|head| head.bytes == item.size) else { return Ok(false) };
    if !to.is_directory() {
        return Ok(head.digest == Some(item.tree.root().to_hex().to_string()));
    }
    let written = Origin::Store(to.clone());
    let written = Reader::new(&written);
    for piece in 0..item.tree.pieces().len() as u64 {
        let (begin, length) = piece_span(piece, item.size);
        let read = if length == 0 { Ok(Bytes::new()) } else { written.read(item.path, begin, length).await };
        if !read.is_ok_and(|bytes| has(item, piece, &bytes)) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn send(
    from: &Reader<'_>,
    item: &Item<'_>,
    to: &Store,
    terms: &Terms,
    sent: &mut dyn FnMut(u64),
) -> anyhow::Result<()> {
    let labels = Labels {
        cache_control: format!(
            "public, max-age={MAX_AGE_S}, s-maxage={}, immutable",
            terms.edge_ttl.as_secs()
        ),
        digest: Some(item.tree.root().to_hex().to_string()),
    };
    let unwritten = |cause: String| anyhow::anyhow!("{}/{} cannot be written: {cause}", to.name, item.path);
    let part = part_bytes(item.size);
    if item.size <= part {
        let bytes = read(from, item, 0, item.size).await?;
        to.put_labelled(item.path, bytes, &labels, WITHIN).await.map_err(unwritten)?;
        sent(item.size);
        return Ok(());
    }
    let mut upload = to.begin(item.path, &labels, WITHIN).await.map_err(unwritten)?;
    let sent = send_parts(from, item, part, &mut upload, sent).await;
    let sent = match sent {
        Ok(()) => upload.finish().await.map_err(anyhow::Error::msg),
        Err(error) => Err(error),
    };
    if sent.is_err() {
        upload.give_up().await;
    }
    sent.with_context(|| format!("{}/{} cannot be written", to.name, item.path))
}

async fn send_parts(
    from: &Reader<'_>,
    item: &Item<'_>,
    part: u64,
    upload: &mut Upload,
    sent: &mut dyn FnMut(u64),
) -> anyhow::Result<()> {
    let mut begin = 0;
    while begin < item.size {
        let length = part.min(item.size - begin);
        upload.room().await.map_err(anyhow::Error::msg)?;
        let bytes = read(from, item, begin, length).await?;
        upload.part(bytes).await.map_err(anyhow::Error::msg)?;
        sent(length);
        begin += length;
    }
    Ok(())
}

/// Bytes of whole pieces, each with the hash that the manifest says.
async fn read(from: &Reader<'_>, item: &Item<'_>, begin: u64, length: u64) -> anyhow::Result<Vec<Bytes>> {
    let mut all = Vec::new();
    for piece in begin / PIECE_BYTES..(begin + length).div_ceil(PIECE_BYTES).max(1) {
        all.push(piece_of(from, item, piece).await?);
    }
    Ok(all)
}

async fn piece_of(from: &Reader<'_>, item: &Item<'_>, piece: u64) -> anyhow::Result<Bytes> {
    let (begin, length) = piece_span(piece, item.size);
    if length == 0 {
        ensure!(has(item, piece, &[]), "the manifest has {} empty, and another hash for it", item.path);
        return Ok(Bytes::new());
    }
    let mut last = String::new();
    for _ in 0..TRIES {
        match from.read(item.path, begin, length).await {
            Ok(bytes) if has(item, piece, &bytes) => return Ok(bytes),
            Ok(_) => {
                let end = begin + length - 1;
                last = format!("{}: has not the bytes of the manifest, in bytes {begin} to {end}", item.path);
            }
            Err(cause) => last = cause,
        }
    }
    bail!("{last} ({TRIES} times)")
}

fn has(item: &Item<'_>, piece: u64, bytes: &[u8]) -> bool {
    let mut hasher = PieceHasher::new(piece, item.size);
    hasher.update(bytes);
    usize::try_from(piece).ok().and_then(|piece| item.tree.pieces().get(piece)) == Some(&hasher.finish())
}
