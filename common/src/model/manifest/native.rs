//! `cic-manifest.json`: BLAKE3 of each file and of its pieces, and SHA-256 where it was asked for.

use std::fmt::Write as _;

use blake3::Hash;
use serde::Deserialize;
use serde_json::json;

use super::content::{Blake3, Content, Sha256};
use super::list::{Manifest, ManifestFault};
use crate::model::tree::{PIECE_BYTES, PieceHash, Tree, piece_count};

pub(super) const FORMAT: &str = "cic-manifest/1";

const HASH_DIGITS: usize = 64;

/// A file's entry.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    path: String,
    size: u64,
    blake3: Option<String>,
    /// The hashes of its pieces of [`PIECE_BYTES`], one behind the other; left out where it has but one.
    pieces: Option<String>,
    sha256: Option<String>,
}

pub(super) fn read(entries: Vec<Entry>) -> Result<Manifest, ManifestFault> {
    let mut manifest = Manifest::default();
    for entry in entries {
        let content =
            content(&entry).map_err(|cause| ManifestFault::File { path: entry.path.clone(), cause })?;
        manifest.add(&entry.path, content)?;
    }
    manifest.complete()
}

fn content(entry: &Entry) -> Result<Content, String> {
    let blake3 = match (&entry.blake3, &entry.pieces) {
        (None, None) => None,
        (None, Some(_)) => return Err("hashes of pieces without the one of the file".to_owned()),
        (Some(root), pieces) => Some(blake3(root, pieces.as_deref(), entry.size)?),
    };
    let sha256 = entry.sha256.as_deref().map(read_sha256).transpose()?;
    Ok(Content { size: Some(entry.size), blake3, sha256 })
}

fn blake3(root: &str, pieces: Option<&str>, size: u64) -> Result<Blake3, String> {
    let root = read_blake3(root)?;
    let pieces = match pieces {
        None if piece_count(size) == 1 => vec![*root.as_bytes()],
        None => return Ok(Blake3::Whole(root)),
        Some(digits) => read_pieces(digits)?,
    };
    let (found, wanted) = (pieces.len() as u64, piece_count(size));
    if found != wanted {
        return Err(format!("{found} hashes of pieces, where {size} bytes have {wanted}"));
    }
    let tree = Tree::new(pieces).filter(|tree| tree.root() == root);
    tree.map(Blake3::Pieces).ok_or_else(|| "the hashes of its pieces do not come to its own".to_owned())
}

fn read_pieces(digits: &str) -> Result<Vec<PieceHash>, String> {
    let bytes = hex::decode(digits).map_err(|error| format!("pieces: {error}"))?;
    let (pieces, rest) = bytes.as_chunks();
    if rest.is_empty() {
        Ok(pieces.to_vec())
    } else {
        Err(format!("pieces: no multiple of {HASH_DIGITS} digits"))
    }
}

pub(super) fn read_blake3(digits: &str) -> Result<Hash, String> {
    Hash::from_hex(digits).map_err(|error| format!("blake3 {digits:?}: {error}"))
}

pub(super) fn read_sha256(digits: &str) -> Result<Sha256, String> {
    digits.parse().map_err(|error| format!("sha256 {digits:?}: {error}"))
}

pub(super) fn write(manifest: &Manifest) -> String {
    let mut text = format!("{{\"format\":{},\"piece_bytes\":{PIECE_BYTES},\"files\":[", json!(FORMAT));
    for (index, (path, content)) in manifest.files().enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        let _ = write!(text, "{{\"path\":{}", json!(path));
        if let Some(size) = content.size {
            let _ = write!(text, ",\"size\":{size}");
        }
        if let Some(sha256) = content.sha256 {
            let _ = write!(text, ",\"sha256\":\"{sha256}\"");
        }
        if let Some(blake3) = &content.blake3 {
            let _ = write!(text, ",\"blake3\":\"{}\"", blake3.root());
            if let Blake3::Pieces(tree) = blake3
                && tree.pieces().len() > 1
            {
                text.push_str(",\"pieces\":\"");
                tree.pieces().iter().for_each(|piece| text.push_str(&hex::encode(piece)));
                text.push('"');
            }
        }
        text.push('}');
    }
    text.push_str("\n]}\n");
    text
}
