//! Where the files come from.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use cic_common::objects::Store;

use super::buffers::Buffers;

/// For one read, the repetitions within the client of a store included.
const READ_WITHIN: Duration = Duration::from_secs(120);

/// Has a model's files.
#[derive(Debug, Clone)]
pub enum Origin {
    Directory(PathBuf),
    Store(Store),
}

/// Reads from an origin, into memory that is used again.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    origin: &'a Origin,
    buffers: Buffers,
}

impl<'a> Reader<'a> {
    pub(super) fn new(origin: &'a Origin) -> Self {
        Self { origin, buffers: Buffers::default() }
    }

    /// `length` bytes from `begin` on of a file.
    ///
    /// # Errors
    /// The cause in words, with the name of the file.
    pub(super) async fn read(&self, path: &str, begin: u64, length: u64) -> Result<Bytes, String> {
        let size = usize::try_from(length).map_err(|_| format!("{path}: {length} bytes are too many"))?;
        let mut bytes = self.buffers.take();
        bytes.reserve_exact(size);
        match self.origin {
            Origin::Directory(directory) => {
                let place = directory.join(path);
                let read = move || {
                    bytes.resize(size, 0);
                    File::open(place)?.read_exact_at(&mut bytes, begin)?;
                    Ok::<_, std::io::Error>(bytes)
                };
                let read = tokio::task::spawn_blocking(read).await.map_err(|error| error.to_string())?;
                bytes = read
                    .map_err(|error| format!("{} cannot be read: {error}", directory.join(path).display()))?;
            }
            Origin::Store(store) => {
                let found = store.get_range(path, begin, length, READ_WITHIN).await;
                let found =
                    found.map_err(|cause| format!("{}/{path} cannot be read: {cause}", store.name))?;
                for part in found.ok_or_else(|| format!("{} has no {path}", store.name))? {
                    bytes.extend_from_slice(&part);
                }
            }
        }
        if bytes.len() as u64 == length {
            Ok(self.buffers.filled(bytes))
        } else {
            Err(format!("{path}: {} bytes came for {length}", bytes.len()))
        }
    }
}
