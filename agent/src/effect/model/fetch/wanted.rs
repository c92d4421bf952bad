//! Which files are to be made whole, and of which pieces.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use cic_common::model::Manifest;
use cic_common::model::manifest::{Blake3, MANIFEST_NAME, SIGNATURE_NAME};
use cic_common::model::tree::{PieceHash, PieceHasher, Tree, piece_count, piece_span};

use super::super::content::{Effort, Hashed, Job, Kind, Ledger, Wrong, check, hash};
use super::staging::Staging;

/// A file that is not whole yet.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) path: String,
    pub(super) size: u64,
    tree: Tree,
    /// Not in the staging folder, in their order.
    pub(super) missing: Vec<u64>,
    /// It lies in the staging folder.
    pub(super) is_staged: bool,
    /// The file in the directory that is wrong: its other pieces are right.
    pub(super) wrong: Option<WrongFile>,
}

#[derive(Debug)]
pub(super) struct WrongFile {
    pub(super) place: PathBuf,
    /// First byte and length.
    ranges: Vec<(u64, u64)>,
}

impl Wanted {
    /// Whether these are the bytes of a piece, one part after the other.
    pub(super) fn has(&self, piece: u64, parts: &[Bytes]) -> bool {
        let mut hasher = PieceHasher::new(piece, self.size);
        parts.iter().for_each(|part| hasher.update(part));
        self.hash_of(piece) == Some(&hasher.finish())
    }

    pub(super) fn hash_of(&self, piece: u64) -> Option<&PieceHash> {
        self.tree.pieces().get(usize::try_from(piece).ok()?)
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|piece| piece_span(*piece, self.size).1).sum()
    }

    /// The file in the directory, when it had this piece as it ought to be.
    pub(super) fn there(&self, piece: u64) -> Option<&Path> {
        let (begin, _) = piece_span(piece, self.size);
        let is_in = |(first, length): &(u64, u64)| (*first..first + length).contains(&begin);
        let wrong = self.wrong.as_ref()?;
        (!wrong.ranges.iter().any(is_in)).then_some(wrong.place.as_path())
    }
}

/// What is lacking. Nothing is changed by that.
///
/// # Errors
/// What forbids to begin: a manifest that would not do, a file that is none of the model's, or one that cannot be read.
pub(super) fn wanted(
    manifest: &Manifest,
    directory: &Path,
    besides: &[PathBuf],
    ledger: &mut Ledger,
    staging: &Staging,
    effort: &Effort<'_>,
) -> anyhow::Result<Vec<Wanted>> {
    for (path, _) in manifest.files() {
        let is_ours = [MANIFEST_NAME, SIGNATURE_NAME].contains(&path);
        ensure!(
            !is_ours && !path.split('/').any(|name| name.starts_with('.')),
            "the manifest names {path:?}, which is no file of a model"
        );
    }
    let mut files = Vec::new();
    for (path, wrong) in lacking(manifest, directory, besides, ledger, staging, effort)? {
        let content = manifest.file(&path).with_context(|| format!("{path} is not in the manifest"))?;
        let (Some(size), Some(Blake3::Pieces(tree))) = (content.size, &content.blake3) else {
            bail!(
                "the manifest has no hashes of the pieces of {path}, by which it could be fetched: have `cic-agent manifest DIR` \
                 write one where the files are known to be good"
            );
        };
        let missing = (0..piece_count(size)).collect();
        files.push(Wanted { path, size, tree: tree.clone(), missing, is_staged: false, wrong });
    }
    look(&mut files, staging, effort)?;
    Ok(files)
}

/// Which files are missing or wrong.
fn lacking(
    manifest: &Manifest,
    directory: &Path,
    besides: &[PathBuf],
    ledger: &mut Ledger,
    staging: &Staging,
    effort: &Effort<'_>,
) -> anyhow::Result<Vec<(String, Option<WrongFile>)>> {
    if staging.is_new {
        return Ok(manifest.files().map(|(path, _)| (path.to_owned(), None)).collect());
    }
    let checked = check(directory, manifest, besides, ledger, effort)?;
    let mut files = Vec::new();
    for finding in checked.findings {
        let place = directory.join(&finding.path);
        let wrong = match finding.wrong {
            Wrong::Missing | Wrong::Bytes { ranges: None } => None,
            Wrong::Length { ranges, .. } | Wrong::Bytes { ranges: Some(ranges) } => {
                Some(WrongFile { place, ranges })
            }
            Wrong::Extra | Wrong::Kind(_) | Wrong::Changed | Wrong::Unreadable { .. } => {
                bail!("{}: {}; take it away first", place.display(), finding.wrong)
            }
        };
        files.push((finding.path, wrong));
    }
    Ok(files)
}

/// What a run that was cut off has left of them.
fn look(files: &mut [Wanted], staging: &Staging, effort: &Effort<'_>) -> anyhow::Result<()> {
    let mut jobs = Vec::new();
    for (index, file) in files.iter_mut().enumerate() {
        let path = staging.path(&file.path);
        file.is_staged = path.is_file();
        if file.is_staged {
            jobs.push((index, Job { path, size: file.size, kind: Kind::Pieces }));
        }
    }
    let (indices, jobs): (Vec<usize>, Vec<Job>) = jobs.into_iter().unzip();
    for (index, hashed) in indices.into_iter().zip(hash(&jobs, effort)?) {
        // What cannot be read is fetched.
        if let Hashed::Pieces(found) = hashed {
            let Wanted { tree, missing, .. } = &mut files[index];
            missing.retain(|piece| {
                let piece = *piece as usize;
                found.get(piece).is_none_or(|hash| hash.as_ref() != tree.pieces().get(piece))
            });
        }
    }
    Ok(())
}
