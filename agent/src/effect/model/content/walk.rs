//! Which files a model's directory holds.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// Files and links below `directory`, relative to it, with `/` between folders. Hidden ones do not count, as no engine loads
/// them; a link to a folder is not followed.
///
/// # Errors
/// When a folder cannot be read, or a name is no text.
pub(in crate::effect::model) fn walk(directory: &Path) -> io::Result<BTreeSet<String>> {
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
