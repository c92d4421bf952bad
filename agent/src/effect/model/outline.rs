//! What a model's directory holds, in one digest, reading a sample of the weights.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ring::digest::{Context, SHA256};

/// Files up to this are read whole: configurations, tokenizers, templates.
const SMALL_BYTES_MAX: u64 = 32 << 20;

/// Longest header of a safetensors file that its library takes.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Of each file's weights so many blocks count, of this length, as far from each other as they can be: two models of one shape
/// differ in all of them.
const BLOCKS: u64 = 16;
const BLOCK_BYTES: u64 = 64 << 10;

/// Length of a safetensors header, before it: eight bytes, the least significant first.
const LENGTH_BYTES: u64 = 8;

/// In hexadecimal. Files in folders of the directory, and those whose name begins with a dot, do not count: an engine loads
/// neither.
pub(super) fn digest(directory: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // A cache of downloads holds links to its files.
        if entry.path().metadata()?.is_file() {
            names.extend(entry.file_name().into_string().ok().filter(|name| !name.starts_with('.')));
        }
    }
    names.sort();
    let mut context = Context::new(&SHA256);
    for name in names {
        let mut file = File::open(directory.join(&name))?;
        let length = file.metadata()?.len();
        let read = if length <= SMALL_BYTES_MAX && !name.ends_with(".safetensors") {
            length
        } else {
            header_bytes(&mut file, length, &name)?
        };
        for part in [name.len() as u64, length, read] {
            context.update(&part.to_le_bytes());
        }
        context.update(name.as_bytes());
        add(&mut context, &file, read)?;
        if name.ends_with(".safetensors") {
            add_sample(&mut context, &file, LENGTH_BYTES + read, length)?;
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How much of a large file counts; the rest of the reading goes on behind the header's length.
fn header_bytes(file: &mut File, length: u64, name: &str) -> io::Result<u64> {
    if !name.ends_with(".safetensors") || length < LENGTH_BYTES {
        return Ok(0);
    }
    let mut header = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut header)?;
    let stated = u64::from_le_bytes(header);
    // One that says more is no such file, which is for the structure's check to say.
    Ok(stated.min(length - LENGTH_BYTES).min(HEADER_BYTES_MAX))
}

fn add(context: &mut Context, file: &File, bytes: u64) -> io::Result<()> {
    let mut rest = file.take(bytes);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(()),
            count => context.update(&buffer[..count]),
        }
    }
}

/// Blocks of what lies between `from` and `to`.
fn add_sample(context: &mut Context, file: &File, from: u64, to: u64) -> io::Result<()> {
    let step = (to.saturating_sub(from) / BLOCKS).max(BLOCK_BYTES);
    let mut buffer = vec![0; BLOCK_BYTES as usize];
    for begin in (0..BLOCKS).map(|block| from + block * step).take_while(|begin| *begin < to) {
        let bytes = &mut buffer[..(to - begin).min(BLOCK_BYTES) as usize];
        file.read_exact_at(bytes, begin)?;
        context.update(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(header: &str, weights: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(weights);
        bytes
    }

    #[test]
    fn what_makes_another_model_makes_another_digest() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(root.path().join(name), bytes).unwrap();
        let now = || digest(root.path()).unwrap();
        write("config.json", b"{}");
        write("model.safetensors", &shard(r#"{"a":1}"#, &[1, 2, 3]));
        let first = now();
        assert_eq!(first.len(), 64);
        assert_eq!(now(), first);
        let mut seen = vec![first];
        let changes: [(&str, &[u8]); 6] = [
            ("config.json", b"{ }"),
            ("config.json", b"[]"),
            ("model.safetensors", &shard(r#"{"b":1}"#, &[1, 2, 3])),
            ("model.safetensors", &shard(r#"{"b":1}"#, &[1, 2, 3, 4])),
            ("model.safetensors", &shard(r#"{"b":1}"#, &[1, 2, 4, 4])),
            ("tokenizer.json", b""),
        ];
        for (name, bytes) in changes {
            write(name, bytes);
            let next = now();
            assert!(!seen.contains(&next), "{name}");
            seen.push(next);
        }
        std::fs::rename(root.path().join("tokenizer.json"), root.path().join("tokenizer_2.json")).unwrap();
        assert!(!seen.contains(&now()));
    }

    #[test]
    fn a_sample_of_large_weights_counts_and_hidden_files_do_not_and_torn_headers_do_no_harm() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(root.path().join(name), bytes).unwrap();
        let mut weights = vec![1; 32 << 20];
        write("model.safetensors", &shard("{}", &weights));
        let first = digest(root.path()).unwrap();
        weights[20 << 20] = 2;
        write("model.safetensors", &shard("{}", &weights));
        assert_ne!(digest(root.path()).unwrap(), first, "the eleventh block begins there");
        weights[20 << 20] = 1;
        weights[BLOCK_BYTES as usize] = 2;
        write("model.safetensors", &shard("{}", &weights));
        write(".lock", b"x");
        std::fs::create_dir(root.path().join("original")).unwrap();
        assert_eq!(digest(root.path()).unwrap(), first);
        write("model.safetensors", &u64::MAX.to_le_bytes());
        assert_ne!(digest(root.path()).unwrap(), first);
        write("model.safetensors", b"x");
        assert_eq!(digest(root.path()).unwrap().len(), 64);
        assert!(digest(&root.path().join("absent")).is_err());
    }
}
