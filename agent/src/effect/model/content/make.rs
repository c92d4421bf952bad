//! The manifest of a directory as it is now.

use std::io;
use std::path::{Path, PathBuf};

use cic_common::model::Manifest;
use cic_common::model::manifest::{Blake3, Content, MANIFEST_NAME, SIGNATURE_NAME};
use cic_common::model::place::{tree_of, walk};
use cic_common::model::tree::Tree;

use super::super::structure::stays_within;
use super::super::{damaged, unreadable};
use super::hash::{Effort, Hashed, Job, Kind, hash};
use super::ledger::Stamp;
use crate::core::ModelFault;

/// Reads every file of `directory` but those in `besides`, which are named by their real paths, twice where SHA-256 is wanted beside BLAKE3.
///
/// # Errors
/// When a file cannot be read, leads elsewhere, or changes meanwhile.
pub fn make(
    directory: &Path,
    with_sha256: bool,
    besides: &[PathBuf],
    effort: &Effort<'_>,
) -> Result<Manifest, ModelFault> {
    let of_directory = |error: io::Error| unreadable(directory, &error);
    let directory = &directory.canonicalize().map_err(of_directory)?;
    let tree = tree_of(directory).map_err(of_directory)?;
    let names = walk(directory).map_err(of_directory)?;
    let kinds = if with_sha256 { vec![Kind::Pieces, Kind::Sha256] } else { vec![Kind::Pieces] };
    let (mut files, mut jobs) = (Vec::new(), Vec::new());
    for name in names.into_iter().filter(|name| ![MANIFEST_NAME, SIGNATURE_NAME].contains(&name.as_str())) {
        let path = directory.join(&name);
        if besides.contains(&path) {
            continue;
        }
        stays_within(&tree, &path)?;
        let found = path.metadata().map_err(|error| unreadable(&path, &error))?;
        if !found.is_file() {
            return Err(damaged(&path, "is no file".to_owned()));
        }
        let size = found.len();
        jobs.extend(kinds.iter().map(|kind| Job { path: path.clone(), size, kind: *kind }));
        files.push((name, size, Stamp::of(&found)));
    }
    if files.is_empty() {
        return Err(ModelFault::NoWeights { path: directory.display().to_string() });
    }
    let hashed = hash(&jobs, effort).map_err(|error| of_directory(io::Error::other(error.to_string())))?;
    let mut hashed = hashed.into_iter();
    let mut manifest = Manifest::default();
    for (name, size, stamp) in files {
        let path = directory.join(&name);
        let mut content = Content { size: Some(size), blake3: None, sha256: None };
        for hashed in hashed.by_ref().take(kinds.len()) {
            enter(&mut content, hashed).map_err(|error| unreadable(&path, &error))?;
        }
        let now = path.metadata().map_err(|error| unreadable(&path, &error))?;
        if Stamp::of(&now) != stamp {
            return Err(damaged(&path, "was changed while it was read".to_owned()));
        }
        manifest.add(&name, content).map_err(|fault| damaged(&path, fault.to_string()))?;
    }
    manifest.complete().map_err(|fault| damaged(directory, fault.to_string()))
}

fn enter(content: &mut Content, hashed: Hashed) -> io::Result<()> {
    let short = || io::Error::other("became shorter while it was read");
    match hashed {
        Hashed::Unreadable { error, .. } => return Err(error),
        Hashed::Sha256(hash) => content.sha256 = Some(hash.ok_or_else(short)?),
        Hashed::Pieces(pieces) => {
            let tree =
                pieces.into_iter().collect::<Option<Vec<_>>>().and_then(Tree::new).ok_or_else(short)?;
            content.blake3 = Some(Blake3::Pieces(tree));
        }
    }
    Ok(())
}
