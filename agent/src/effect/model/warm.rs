//! Has the weights in the page cache by the time that the engine reads them.
//!
//! An engine reads one file after the other, by one thread or a few; a disk or a store behind a mount gives several readers
//! several times as much. vLLM 0.32 does the like by itself on some network file systems, once it has come up that far.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use cic_common::units::Bytes;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};

use super::{structure, text};
use crate::core::ModelFault;

/// Reads at once. More of them help no local disk, and a network's share of one client is filled by fewer.
const READERS: usize = 4;

const BLOCK_BYTES: u64 = 8 << 20;

/// Of the memory that is available this part may be filled: the engine needs some of it meanwhile.
const PART_MAX: f64 = 0.8;

/// One read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    file: usize,
    begin: u64,
    length: u64,
}

/// Reads all weights of the model in `directory`, in the order in which engines load them, if they have room in
/// `available_bytes` of memory. Says in words what was done.
///
/// # Errors
/// When the directory or a file cannot be read.
pub(super) fn warm(directory: &Path, available_bytes: Option<u64>) -> Result<String, ModelFault> {
    let unreadable =
        |error: &io::Error| ModelFault::Unreadable { path: text(directory), cause: error.to_string() };
    let found = statfs(directory).map_err(|error| unreadable(&error.into()))?;
    if found.filesystem_type() == FUSE_SUPER_MAGIC {
        return Ok("nothing: FUSE drops what it has of a file with the next opening of it".to_owned());
    }
    let paths = structure::shards(directory)?;
    let files =
        paths.iter().map(File::open).collect::<io::Result<Vec<_>>>().map_err(|error| unreadable(&error))?;
    let lengths = files.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<Vec<u64>>>();
    let lengths = lengths.map_err(|error| unreadable(&error))?;
    let all: u64 = lengths.iter().sum();
    if let Some(available) = available_bytes.filter(|available| all as f64 > *available as f64 * PART_MAX) {
        return Ok(format!(
            "{} would not stay in the {} of memory that are available",
            Bytes(all),
            Bytes(available)
        ));
    }
    let blocks = blocks(&lengths);
    let next = AtomicUsize::new(0);
    let read_some = |_: rayon::BroadcastContext<'_>| -> io::Result<()> {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            files[block.file].read_exact_at(&mut buffer[..block.length as usize], block.begin)?;
        }
        Ok(())
    };
    let readers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(READERS);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(readers).build().map_err(io::Error::other);
    let read = pool.and_then(|pool| pool.broadcast(read_some).into_iter().collect::<io::Result<()>>());
    read.map_err(|error| unreadable(&error))?;
    Ok(format!("{} of weights", Bytes(all)))
}

/// In the order of the files, and in each from its beginning.
fn blocks(lengths: &[u64]) -> Vec<Block> {
    let of_one = |(file, length): (usize, &u64)| {
        let length = *length;
        let begins = (0..length.div_ceil(BLOCK_BYTES)).map(|number| number * BLOCK_BYTES);
        begins.map(move |begin| Block { file, begin, length: BLOCK_BYTES.min(length - begin) })
    };
    lengths.iter().enumerate().flat_map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use rustix::fs::{Advice, fadvise};
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;

    /// Whether a byte of the file lies in the page cache.
    fn is_cached(file: &File, at: u64) -> bool {
        let mut byte = [0];
        preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) == Ok(1)
    }

    #[test]
    fn weights_are_in_the_page_cache_afterwards() {
        // Not below /tmp, which may be memory that nothing can be driven out of.
        let root = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = root.path().join("model.safetensors");
        let length = BLOCK_BYTES * 2 + 4096;
        std::fs::write(&path, vec![7; length as usize]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let places = [4096, BLOCK_BYTES + 17, length - 1];
        assert!(places.iter().any(|at| !is_cached(&file, *at)), "nothing was driven out");
        let said = warm(root.path(), Some(length * 2)).unwrap();
        assert_eq!(said, "16.0 MiB of weights");
        assert!(places.iter().all(|at| is_cached(&file, *at)));
        let said = warm(root.path(), Some(length)).unwrap();
        assert!(said.contains("would not stay"), "{said}");
    }

    #[test]
    fn files_are_read_one_after_the_other() {
        let block = |file, begin, length| Block { file, begin, length };
        let expected =
            [block(0, 0, BLOCK_BYTES), block(0, BLOCK_BYTES, 1), block(2, 0, BLOCK_BYTES), block(3, 0, 5)];
        assert_eq!(blocks(&[BLOCK_BYTES + 1, 0, BLOCK_BYTES, 5]), expected);
    }
}
