//! Where the files come from.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use cic_common::objects::Store;

/// For one read, the repetitions within the client of a store included.
const READ_WITHIN: Duration = Duration::from_secs(120);

/// Has a model's files.
#[derive(Debug, Clone)]
pub enum Origin {
    Directory(PathBuf),
    Store(Store),
}

impl Origin {
    /// `length` bytes from `begin` on of a file.
    ///
    /// # Errors
    /// The cause in words, with the name of the file.
    pub(super) async fn read(&self, path: &str, begin: u64, length: u64) -> Result<Bytes, String> {
        let bytes = match self {
            Self::Directory(directory) => {
                let place = directory.join(path);
                let read = move || {
                    let mut bytes = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
                    File::open(place)?.read_exact_at(&mut bytes, begin)?;
                    Ok::<_, std::io::Error>(Bytes::from(bytes))
                };
                let read = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
                read.map_err(|error| format!("{} cannot be read: {error}", directory.join(path).display()))?
            }
            Self::Store(store) => {
                let found = store.get_range(path, begin, length, READ_WITHIN).await;
                let found =
                    found.map_err(|cause| format!("{}/{path} cannot be read: {cause}", store.name))?;
                let parts = found.ok_or_else(|| format!("{} has no {path}", store.name))?;
                parts.concat().into()
            }
        };
        if bytes.len() as u64 == length {
            Ok(bytes)
        } else {
            Err(format!("{path}: {} bytes came for {length}", bytes.len()))
        }
    }
}
