//! Which pieces are to be fetched.

use anyhow::{Context as _, bail};
use cic_common::model::Manifest;
use cic_common::model::manifest::Blake3;
use cic_common::model::tree::{PieceHash, Tree, piece_count, piece_span};

use super::super::content::{Effort, Hashed, Job, Kind, hash};
use super::place::Place;

/// A file that is not whole yet.
#[derive(Debug)]
pub(super) struct WantedFile {
    pub(super) path: String,
    pub(super) size: u64,
    tree: Tree,
    /// Those that are not there, in their order.
    pub(super) missing: Vec<u64>,
}

impl WantedFile {
    pub(super) fn hash_of(&self, piece: u64) -> Option<&PieceHash> {
        self.tree.pieces().get(piece as usize)
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.missing.iter().map(|piece| piece_span(*piece, self.size).1).sum()
    }
}

/// What is lacking of the files `paths`, after a look at what lies in `place`.
pub(super) fn want(
    manifest: &Manifest,
    paths: &[String],
    place: &Place,
    effort: &Effort<'_>,
) -> anyhow::Result<Vec<WantedFile>> {
    let mut files = Vec::new();
    let mut jobs = Vec::new();
    for path in paths {
        let content = manifest.file(path).with_context(|| format!("{path} is not in the manifest"))?;
        let (Some(size), Some(Blake3::Pieces(tree))) = (content.size, &content.blake3) else {
            bail!(
                "the manifest has no hashes of the pieces of {path}, by which it could be fetched: have `cic-agent manifest DIR` \
                 write one where the files are known to be good"
            );
        };
        let staged = place.staged(path);
        // What is not there needs no look.
        let found = staged.metadata().map_or(0, |found| found.len());
        if found > 0 {
            jobs.push((files.len(), Job { path: staged, size, kind: Kind::Pieces }));
        }
        let missing = (0..piece_count(size)).collect();
        files.push(WantedFile { path: path.clone(), size, tree: tree.clone(), missing });
    }
    let (places, jobs): (Vec<usize>, Vec<Job>) = jobs.into_iter().unzip();
    for (place, hashed) in places.into_iter().zip(hash(&jobs, effort)?) {
        let file = &mut files[place];
        // What cannot be read is fetched.
        if let Hashed::Pieces(found) = hashed {
            let WantedFile { tree, missing, .. } = file;
            missing.retain(|piece| {
                let piece = *piece as usize;
                found.get(piece).is_none_or(|hash| hash.as_ref() != tree.pieces().get(piece))
            });
        }
    }
    Ok(files)
}
