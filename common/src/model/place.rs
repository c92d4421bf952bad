//! Where a model's files may lie.

use std::collections::BTreeSet;
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

/// Files and links below `directory`, relative to it, with `/` between folders. Hidden ones do not count, as no engine loads
/// them; a link to a folder is not followed.
///
/// # Errors
/// When a folder cannot be read, or a name is no text.
pub fn walk(directory: &Path) -> io::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(directory.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name().into_string();
            let name =
                name.map_err(|name| io::Error::other(format!("holds {name:?}, whose name is no text")))?;
            if name.starts_with('.') {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    Ok(found)
}
