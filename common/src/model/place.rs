//! Where a model's files may lie.

use std::io;
use std::path::{Path, PathBuf};

/// What a link in a model's directory may lead to: the directory, or, where it is a snapshot in a cache of the Hugging Face hub,
/// the folder with its blobs beside it.
///
/// # Errors
/// When the directory is not there.
pub fn tree_of(directory: &Path) -> io::Result<PathBuf> {
    let directory = directory.canonicalize()?;
    let snapshots = directory.parent().filter(|parent| parent.ends_with("snapshots"));
    let repository = snapshots.and_then(Path::parent).filter(|repository| repository.join("blobs").is_dir());
    Ok(repository.map(Path::to_path_buf).unwrap_or(directory))
}
