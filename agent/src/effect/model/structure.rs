//! Whether a model's directory is whole as far as lengths and headers tell, without reading a weight.
//!
//! Each byte of each weights file must belong to one tensor, each tensor that the index names must lie in the shard that it
//! names and in no other, and no name may lead elsewhere. That takes a few reads a file, whatever the weights weigh; it does
//! not see a flipped bit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use cic_common::model::header::{LENGTH_BYTES, header_length};
use cic_common::model::index::{INDEX_BYTES_MAX, INDEX_NAME};
use cic_common::model::place::tree_of;
use cic_common::model::{Header, HeaderFault, Index};

use super::{damaged, text, unreadable};
use crate::core::ModelFault;

const WEIGHTS: &str = "safetensors";

/// What a whole model's files come to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    pub files: usize,
    pub tensors: usize,
    /// Of the weights files.
    pub bytes: u64,
}

/// Looks at the files of `directory`.
///
/// # Errors
/// The first thing that is wrong, with the file that it is wrong with.
pub fn check(directory: &Path) -> Result<Outline, ModelFault> {
    let tree = tree_of(directory).map_err(|error| unreadable(directory, &error))?;
    let names = names_in(directory)?;
    for name in &names {
        stays_within(&tree, &directory.join(name))?;
    }
    let index = read_index(directory)?;
    let shards: Vec<&str> = match &index {
        Some(index) => {
            let shards: Vec<&str> = index.shards().into_iter().collect();
            if let Some(missing) = shards.iter().find(|shard| !names.iter().any(|name| name == *shard)) {
                let path = text(&directory.join(INDEX_NAME));
                return Err(ModelFault::MissingShard { path, shard: (*missing).to_owned() });
            }
            no_stray_shard(directory, &names, &shards)?;
            shards
        }
        None => names.iter().map(String::as_str).filter(|name| is_weights(name)).collect(),
    };
    if shards.is_empty() {
        return Err(ModelFault::NoWeights { path: text(directory) });
    }
    let headers = read_headers(directory, &shards)?;
    no_tensor_twice(directory, &headers)?;
    if let Some(index) = &index {
        as_indexed(directory, index, &headers)?;
    }
    Ok(Outline {
        files: headers.len(),
        tensors: headers.iter().map(|(_, read)| read.header.tensors.len()).sum(),
        bytes: headers.iter().map(|(_, read)| read.length).sum(),
    })
}

/// The files that an engine loads from `directory`, in the order in which it does.
pub(super) fn shards(directory: &Path) -> Result<Vec<PathBuf>, ModelFault> {
    let names: Vec<String> = match read_index(directory)? {
        Some(index) => index.shards().into_iter().map(str::to_owned).collect(),
        None => names_in(directory)?.into_iter().filter(|name| is_weights(name)).collect(),
    };
    Ok(names.iter().map(|name| directory.join(name)).collect())
}

/// The names in the directory, sorted, but for hidden ones, which no engine loads. No two may differ in case alone: a file
/// system that does not tell them apart has lost one.
fn names_in(directory: &Path) -> Result<Vec<String>, ModelFault> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let name = entry?.file_name().into_string();
            let name =
                name.map_err(|name| io::Error::other(format!("holds {name:?}, whose name is no text")))?;
            names.extend(Some(name).filter(|name| !name.starts_with('.')));
        }
        names.sort();
        Ok(names)
    };
    let names = read().map_err(|error| unreadable(directory, &error))?;
    let mut folded = BTreeMap::new();
    for name in &names {
        if let Some(other) = folded.insert(name.to_lowercase(), name) {
            let cause = format!("{other} differs from it in case alone, and some file systems keep but one");
            return Err(damaged(&directory.join(name), cause));
        }
    }
    Ok(names)
}

pub(super) fn stays_within(tree: &Path, path: &Path) -> Result<(), ModelFault> {
    let found = path.symlink_metadata().map_err(|error| unreadable(path, &error))?;
    if !found.is_symlink() {
        return Ok(());
    }
    match path.canonicalize() {
        Ok(target) if target.starts_with(tree) => Ok(()),
        Ok(target) => {
            Err(damaged(path, format!("leads out of the model's directory, to {}", target.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(damaged(path, "leads to a file that is not there".to_owned()))
        }
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn is_weights(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == WEIGHTS)
}

fn read_index(directory: &Path) -> Result<Option<Index>, ModelFault> {
    let path = directory.join(INDEX_NAME);
    let length = match path.metadata() {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&path, &error)),
    };
    if length > INDEX_BYTES_MAX {
        return Err(damaged(&path, format!("{length} bytes, more than an index can have")));
    }
    let json = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
    Index::parse(&json).map(Some).map_err(|fault| damaged(&path, fault.to_string()))
}

/// A file that is numbered as one of the model's (`NAME-00009-of-00008.safetensors`) and that the index does not name is left
/// of another download. Other weights beside, as some publishers put them there, are not loaded.
fn no_stray_shard(directory: &Path, names: &[String], shards: &[&str]) -> Result<(), ModelFault> {
    let families: Vec<&str> = shards.iter().filter_map(|shard| family(shard)).collect();
    let stray = names.iter().find(|name| {
        family(name).is_some_and(|of| families.contains(&of)) && !shards.contains(&name.as_str())
    });
    match stray {
        Some(name) => Err(damaged(
            &directory.join(name),
            format!("is numbered as a shard, and {INDEX_NAME} does not name it: left of another download"),
        )),
        None => Ok(()),
    }
}

/// `NAME` of `NAME-00001-of-00008.safetensors`.
fn family(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".safetensors")?;
    let (head, of) = stem.rsplit_once("-of-")?;
    let (family, number) = head.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(of) && is_number(number)).then_some(family)
}

struct ReadHeader {
    header: Header,
    length: u64,
}

/// The headers of `shards`, in their order.
fn read_headers<'a>(directory: &Path, shards: &[&'a str]) -> Result<Vec<(&'a str, ReadHeader)>, ModelFault> {
    shards.iter().map(|shard| Ok((*shard, read_header(&directory.join(shard))?))).collect()
}

fn read_header(path: &Path) -> Result<ReadHeader, ModelFault> {
    let read = || -> io::Result<Result<ReadHeader, HeaderFault>> {
        let mut file = File::open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("is no file"));
        }
        let length = found.len();
        let mut first = [0; LENGTH_BYTES];
        if length < LENGTH_BYTES as u64 {
            return Ok(Err(HeaderFault::Short { length }));
        }
        file.read_exact(&mut first)?;
        let stated = match header_length(first, length) {
            Ok(stated) => stated,
            Err(fault) => return Ok(Err(fault)),
        };
        let mut json = Vec::new();
        file.take(stated).read_to_end(&mut json)?;
        if json.len() as u64 != stated {
            return Err(io::Error::other("became shorter while it was read"));
        }
        Ok(Header::parse(&json, length).map(|header| ReadHeader { header, length }))
    };
    read().map_err(|error| unreadable(path, &error))?.map_err(|fault| damaged(path, fault.to_string()))
}

fn no_tensor_twice(directory: &Path, headers: &[(&str, ReadHeader)]) -> Result<(), ModelFault> {
    let mut held = BTreeMap::new();
    for (shard, read) in headers {
        for tensor in read.header.tensors.keys() {
            if let Some(other) = held.insert(tensor.as_str(), *shard) {
                let cause = format!("tensor {tensor} is in {other} too");
                return Err(damaged(&directory.join(shard), cause));
            }
        }
    }
    Ok(())
}

fn as_indexed(directory: &Path, index: &Index, headers: &[(&str, ReadHeader)]) -> Result<(), ModelFault> {
    let header_of: BTreeMap<&str, &Header> =
        headers.iter().map(|(shard, read)| (*shard, &read.header)).collect();
    for (tensor, shard) in index.iter() {
        if header_of.get(shard).is_none_or(|header| !header.tensors.contains_key(tensor)) {
            let cause = format!("lacks tensor {tensor}, which {INDEX_NAME} has there");
            return Err(damaged(&directory.join(shard), cause));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";

    /// A shard whose tensors are of four bytes each.
    fn shard(tensors: &[&str]) -> Vec<u8> {
        let entry = |(at, name): (usize, &&str)| {
            format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, at * 4, at * 4 + 4)
        };
        let json = format!("{{{}}}", tensors.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.extend(std::iter::repeat_n(7, tensors.len() * 4));
        bytes
    }

    /// A whole model of two shards with two tensors each.
    fn whole() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let index =
            format!(r#"{{"weight_map":{{"a":"{FIRST}","b":"{FIRST}","c":"{SECOND}","d":"{SECOND}"}}}}"#);
        std::fs::write(root.path().join(INDEX_NAME), index).unwrap();
        std::fs::write(root.path().join(FIRST), shard(&["a", "b"])).unwrap();
        std::fs::write(root.path().join(SECOND), shard(&["c", "d"])).unwrap();
        std::fs::write(root.path().join("config.json"), "{}").unwrap();
        root
    }

    #[test]
    fn a_whole_model_is_told_by_its_files_tensors_and_bytes() {
        let root = whole();
        let bytes = [FIRST, SECOND].map(|name| root.path().join(name).metadata().unwrap().len());
        assert_eq!(check(root.path()), Ok(Outline { files: 2, tensors: 4, bytes: bytes.iter().sum() }));
        // As some publishers add it, and as downloads leave it.
        std::fs::write(root.path().join("consolidated.safetensors"), shard(&["z"])).unwrap();
        std::fs::create_dir(root.path().join(".cache")).unwrap();
        assert!(check(root.path()).is_ok());
    }

    #[test]
    fn a_single_file_needs_no_index() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("model.safetensors"), shard(&["a"])).unwrap();
        assert_eq!(check(root.path()).map(|outline| outline.tensors), Ok(1));
    }

    /// What is done to a whole model, the file that is named for it, and the cause that is.
    type Damage = (&'static str, fn(&Path), &'static str, &'static str);

    const DAMAGES: [Damage; 18] = [
        ("truncated", |dir| edit(dir, SECOND, |bytes| bytes.truncate(bytes.len() - 3)), SECOND, "cut off"),
        ("grown", |dir| edit(dir, SECOND, |bytes| bytes.push(0)), SECOND, "something was added"),
        ("cut in its header", |dir| edit(dir, SECOND, |bytes| bytes.truncate(20)), SECOND, "cut off, or no"),
        ("empty", |dir| edit(dir, SECOND, Vec::clear), SECOND, "too short"),
        ("zeroed header", |dir| edit(dir, SECOND, |bytes| bytes[..64].fill(0)), SECOND, "zeros"),
        ("zeroed but for the length", |dir| edit(dir, FIRST, |bytes| bytes[8..].fill(0)), FIRST, "zeros"),
        (
            "web page",
            |dir| edit(dir, FIRST, |bytes| *bytes = b"<!DOCTYPE html><html>503</html>".to_vec()),
            FIRST,
            "web page",
        ),
        (
            "header of 2^63 bytes",
            |dir| edit(dir, FIRST, |bytes| bytes[..8].copy_from_slice(&(1_u64 << 63).to_le_bytes())),
            FIRST,
            "9223372036854775808 bytes",
        ),
        ("missing", |dir| std::fs::remove_file(dir.join(SECOND)).unwrap(), INDEX_NAME, SECOND),
        (
            "extra",
            |dir| std::fs::write(dir.join("model-00003-of-00003.safetensors"), shard(&["e"])).unwrap(),
            "model-00003-of-00003.safetensors",
            "left of another download",
        ),
        (
            "an index that names an absent tensor",
            |dir| std::fs::write(dir.join(SECOND), shard(&["c"])).unwrap(),
            SECOND,
            "lacks tensor d",
        ),
        (
            "a tensor in the wrong shard",
            |dir| {
                std::fs::write(dir.join(FIRST), shard(&["a", "c"])).unwrap();
                std::fs::write(dir.join(SECOND), shard(&["b", "d"])).unwrap();
            },
            FIRST,
            "lacks tensor b",
        ),
        (
            "a tensor in two shards",
            |dir| std::fs::write(dir.join(SECOND), shard(&["c", "d", "a"])).unwrap(),
            SECOND,
            "tensor a is in model-00001-of-00002.safetensors too",
        ),
        (
            "a way out",
            |dir| std::fs::write(dir.join(INDEX_NAME), r#"{"weight_map":{"a":"../secret"}}"#).unwrap(),
            INDEX_NAME,
            "not a plain file name",
        ),
        (
            "a link out",
            |dir| {
                std::fs::remove_file(dir.join(SECOND)).unwrap();
                symlink("/etc/hostname", dir.join(SECOND)).unwrap();
            },
            SECOND,
            "leads out of the model's directory, to /etc/hostname",
        ),
        (
            "a link to nothing",
            |dir| {
                std::fs::remove_file(dir.join(SECOND)).unwrap();
                symlink("gone", dir.join(SECOND)).unwrap();
            },
            SECOND,
            "not there",
        ),
        (
            "two names of one in case",
            |dir| std::fs::write(dir.join("CONFIG.json"), "{}").unwrap(),
            "config.json",
            "in case alone",
        ),
        (
            "no index",
            |dir| std::fs::write(dir.join(INDEX_NAME), "{").unwrap(),
            INDEX_NAME,
            "no index of shards",
        ),
    ];

    fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(dir.join(name)).unwrap();
        change(&mut bytes);
        std::fs::write(dir.join(name), bytes).unwrap();
    }

    #[test]
    fn each_damage_is_refused_by_the_name_of_its_file_and_its_cause() {
        for (what, damage, file, cause) in DAMAGES {
            let root = whole();
            damage(root.path());
            let fault = check(root.path()).expect_err(what).to_string();
            assert!(fault.contains(&text(&root.path().join(file))), "{what}: {fault}");
            assert!(fault.contains(cause), "{what}: {fault}");
        }
    }

    #[test]
    fn a_snapshot_of_the_hub_may_link_to_the_blobs_beside_it_and_no_further() {
        let root = tempfile::tempdir().unwrap();
        let (blobs, snapshot) =
            (root.path().join("models--o--m/blobs"), root.path().join("models--o--m/snapshots/1"));
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(blobs.join("abc"), shard(&["a"])).unwrap();
        symlink("../../blobs/abc", snapshot.join("model.safetensors")).unwrap();
        assert!(check(&snapshot).is_ok());
        std::fs::write(root.path().join("other"), "").unwrap();
        symlink("../../../other", snapshot.join("config.json")).unwrap();
        assert!(check(&snapshot).unwrap_err().to_string().contains("leads out"));
    }

    #[test]
    fn several_names_of_shards_are_one_family() {
        for (name, of) in [
            (FIRST, Some("model")),
            ("a-b-00001-of-00002.safetensors", Some("a-b")),
            ("model.safetensors", None),
            ("model-x-of-y.safetensors", None),
            ("model-00001-of-00002.bin", None),
        ] {
            assert_eq!(family(name), of, "{name}");
        }
    }
}
