//! A directory against its manifest.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use cic_common::model::Manifest;
use cic_common::model::manifest::{Blake3, Content, MANIFEST_BYTES_MAX, MANIFEST_NAME, SIGNATURE_NAME};
use cic_common::model::place::{tree_of, walk};
use cic_common::model::tree::{Tree, piece_count, piece_span};

use super::super::structure::stays_within;
use super::super::{damaged, unreadable};
use super::finding::{Finding, Wrong};
use super::hash::{Effort, Hashed, Job, Kind, hash};
use super::ledger::{Ledger, Stamp};
use crate::core::ModelFault;

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub files: usize,
    pub bytes: u64,
    /// Of them, what was taken from the ledger and not read.
    pub known_bytes: u64,
    /// In the order of their paths; none when all is right.
    pub findings: Vec<Finding>,
    /// Why the ledger does not know of it: all will be read again.
    pub unsaved: Option<String>,
}

/// The manifest in `file`, or the one that lies in `directory`; `None` when none does.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn read_manifest(directory: &Path, file: Option<&Path>) -> Result<Option<Manifest>, ModelFault> {
    let places = match file {
        Some(file) => vec![file.to_owned()],
        None => [MANIFEST_NAME, SIGNATURE_NAME].map(|name| directory.join(name)).to_vec(),
    };
    for place in places {
        let found = match place.metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => continue,
            Err(error) => return Err(unreadable(&place, &error)),
        };
        if !found.is_file() || found.len() > MANIFEST_BYTES_MAX {
            let cause = format!("no file of at most {MANIFEST_BYTES_MAX} bytes, as a manifest is");
            return Err(damaged(&place, cause));
        }
        let json = std::fs::read(&place).map_err(|error| unreadable(&place, &error))?;
        return Manifest::parse(&json).map(Some).map_err(|fault| damaged(&place, fault.to_string()));
    }
    Ok(None)
}

/// A file that has to be read, and as what it was found.
struct Reading<'a> {
    path: &'a str,
    content: &'a Content,
    stamp: Stamp,
    found: u64,
    digest: String,
}

/// Reads every file that the manifest names and that `ledger` does not know, and hashes it. Files in `besides`, by their real
/// paths, may lie in the directory too.
///
/// # Errors
/// When the directory itself cannot be read. What is wrong with a file is a finding.
pub fn check(
    directory: &Path,
    manifest: &Manifest,
    besides: &[PathBuf],
    ledger: &mut Ledger,
    effort: &Effort<'_>,
) -> Result<Checked, ModelFault> {
    let of_directory = |error: io::Error| unreadable(directory, &error);
    let directory = &directory.canonicalize().map_err(of_directory)?;
    let tree = tree_of(directory).map_err(of_directory)?;
    let mut wrong: BTreeMap<String, Wrong> = walk(directory)
        .map_err(of_directory)?
        .into_iter()
        .filter(|path| manifest.file(path).is_none() && !manifest.says_nothing_of(path))
        .filter(|path| !besides.contains(&directory.join(path)))
        .map(|path| (path, Wrong::Extra))
        .collect();
    let (mut readings, mut jobs, mut bytes, mut known_bytes) = (Vec::new(), Vec::new(), 0, 0);
    for (path, content) in manifest.files() {
        match look(directory, &tree, path, content) {
            Ok(reading) => {
                bytes += reading.found;
                if ledger.knows(&directory.join(path), reading.stamp, &reading.digest) {
                    known_bytes += reading.found;
                } else if let Some(job) = job_of(directory, &reading) {
                    jobs.push(job);
                    readings.push(reading);
                } else {
                    let wanted = content.size.unwrap_or_default();
                    let length = Wrong::Length { found: reading.found, wanted, ranges: vec![(0, wanted)] };
                    wrong.insert(path.to_owned(), length);
                }
            }
            Err(seen) => {
                wrong.insert(path.to_owned(), seen);
            }
        }
    }
    let hashed = hash(&jobs, effort).map_err(|error| of_directory(io::Error::other(error.to_string())))?;
    for (reading, hashed) in readings.into_iter().zip(hashed) {
        let place = directory.join(reading.path);
        match judge(&reading, hashed).or_else(|| changed(&place, reading.stamp)) {
            Some(seen) => {
                ledger.forget(&place);
                wrong.insert(reading.path.to_owned(), seen);
            }
            None => ledger.learn(place, reading.stamp, reading.digest),
        }
    }
    ledger.retain_below(directory, |path| path.to_str().is_some_and(|path| manifest.file(path).is_some()));
    let unsaved = ledger.save().err().map(|error| error.to_string());
    let findings = wrong.into_iter().map(|(path, wrong)| Finding { path, wrong }).collect();
    Ok(Checked { files: manifest.files().count(), bytes, known_bytes, findings, unsaved })
}

/// What can be told of a file without reading it.
fn look<'a>(
    directory: &Path,
    tree: &Path,
    path: &'a str,
    content: &'a Content,
) -> Result<Reading<'a>, Wrong> {
    let place: PathBuf = directory.join(path);
    stays_within(tree, &place).map_err(|fault| match fault {
        ModelFault::Damaged { cause, .. } => Wrong::Kind(cause),
        fault => absent_or(&place, fault.to_string()),
    })?;
    let found = place.metadata().map_err(|error| absent_or(&place, error.to_string()))?;
    // Folders on the way may be links too.
    let real = place.canonicalize().map_err(|error| absent_or(&place, error.to_string()))?;
    if !real.starts_with(tree) {
        return Err(Wrong::Kind(format!("leads out of the model's directory, to {}", real.display())));
    }
    if !found.is_file() {
        return Err(Wrong::Kind("is no file".to_owned()));
    }
    // No manifest has a file without.
    let digest = digest_of(content, found.len()).ok_or(Wrong::Bytes { ranges: None })?;
    Ok(Reading { path, content, stamp: Stamp::of(&found), found: found.len(), digest })
}

/// What the ledger keeps of a file of `found` bytes that is right.
pub(in crate::effect::model) fn digest_of(content: &Content, found: u64) -> Option<String> {
    let size = content.size.unwrap_or(found);
    match (&content.blake3, &content.sha256) {
        (Some(blake3), _) => Some(format!("blake3:{}:{size}", blake3.root())),
        (None, Some(sha256)) => Some(format!("sha256:{sha256}:{size}")),
        (None, None) => None,
    }
}

fn absent_or(place: &Path, cause: String) -> Wrong {
    match place.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Wrong::Missing,
        _ => Wrong::Unreadable { at: 0, cause },
    }
}

/// `None` for a file whose length alone condemns it, and whose pieces cannot be told apart.
fn job_of(directory: &Path, reading: &Reading<'_>) -> Option<Job> {
    let size = reading.content.size.unwrap_or(reading.found);
    let kind = if reading.content.blake3.is_some() { Kind::Pieces } else { Kind::Sha256 };
    let has_pieces = matches!(reading.content.blake3, Some(Blake3::Pieces(_)));
    let is_read = size == reading.found || has_pieces;
    is_read.then(|| Job { path: directory.join(reading.path), size, kind })
}

/// What the hashes say against it.
fn judge(reading: &Reading<'_>, hashed: Hashed) -> Option<Wrong> {
    let wanted = reading.content.size.unwrap_or(reading.found);
    match hashed {
        // A length that is wrong is no matter of reading it again.
        Hashed::Unreadable { .. } if reading.found != wanted => {
            Some(Wrong::Length { found: reading.found, wanted, ranges: vec![(0, wanted)] })
        }
        Hashed::Unreadable { at, error } => Some(Wrong::Unreadable { at, cause: error.to_string() }),
        Hashed::Sha256(hash) => {
            (hash.is_none() || hash != reading.content.sha256).then_some(Wrong::Bytes { ranges: None })
        }
        Hashed::Pieces(found) => match &reading.content.blake3 {
            Some(Blake3::Pieces(tree)) => {
                let ranges = wrong_ranges(tree, &found, wanted);
                if reading.found != wanted {
                    return Some(Wrong::Length { found: reading.found, wanted, ranges });
                }
                (!ranges.is_empty()).then_some(Wrong::Bytes { ranges: Some(ranges) })
            }
            Some(Blake3::Whole(root)) => {
                let tree = found.into_iter().collect::<Option<Vec<_>>>().and_then(Tree::new);
                let is_right = tree.is_some_and(|tree| tree.root() == *root);
                (!is_right).then_some(Wrong::Bytes { ranges: None })
            }
            None => Some(Wrong::Bytes { ranges: None }),
        },
    }
}

/// Neighbours are one stretch.
fn wrong_ranges(
    tree: &Tree,
    found: &[Option<cic_common::model::tree::PieceHash>],
    size: u64,
) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for index in 0..piece_count(size) {
        let at = index as usize;
        if found.get(at).is_some_and(|hash| hash.as_ref() == tree.pieces().get(at)) {
            continue;
        }
        let (begin, length) = piece_span(index, size);
        match ranges.last_mut() {
            Some((first, so_far)) if *first + *so_far == begin => *so_far += length,
            _ => ranges.push((begin, length)),
        }
    }
    ranges
}

fn changed(place: &Path, before: Stamp) -> Option<Wrong> {
    match place.metadata() {
        Ok(now) => (Stamp::of(&now) != before).then_some(Wrong::Changed),
        Err(error) => Some(Wrong::Unreadable { at: 0, cause: error.to_string() }),
    }
}
