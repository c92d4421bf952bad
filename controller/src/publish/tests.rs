use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cic_common::model::manifest::MANIFEST_NAME;
use cic_common::model::tree::PIECE_BYTES;
use cic_common::objects::{Store, Stores};

use super::*;

const TERMS: Terms = Terms { replaces: false, edge_ttl: Duration::from_secs(60) };

const WEIGHTS_BYTES: usize = PIECE_BYTES as usize * 5 + 77;

fn store(directory: &Path) -> Store {
    let url = format!("file://{}", directory.display());
    Stores::open([url.as_str()]).unwrap().all.remove(0)
}

/// A model without safetensors, whose files are not looked into.
fn model(directory: &Path) {
    fs::create_dir_all(directory.join("sub")).unwrap();
    let bytes: Vec<u8> = (0..WEIGHTS_BYTES).map(|at| (at ^ (at >> 9) ^ (at >> 20)) as u8).collect();
    fs::write(directory.join("weights.bin"), bytes).unwrap();
    fs::write(directory.join("sub/tokenizer.json"), "[]").unwrap();
    fs::write(directory.join("empty.txt"), "").unwrap();
    fs::write(directory.join(".hidden"), "no part of it").unwrap();
}

async fn push(from: &Path, to: &Store, terms: &Terms) -> anyhow::Result<Published> {
    let manifest = manifest_of_directory(from, &|_, _| {}).await?;
    publish(&Origin::Directory(from.to_owned()), &manifest, to, terms, &|_, _| {}).await
}

#[tokio::test]
async fn a_model_is_published_whole_and_not_sent_twice() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("to"));
    model(&from);
    let store = store(&to);
    let all = WEIGHTS_BYTES as u64 + 2;
    assert_eq!(
        push(&from, &store, &TERMS).await.unwrap(),
        Published { files: 3, bytes: all, sent_bytes: all }
    );
    for name in ["weights.bin", "sub/tokenizer.json", "empty.txt"] {
        assert_eq!(fs::read(from.join(name)).unwrap(), fs::read(to.join(name)).unwrap(), "{name}");
    }
    assert!(!to.join(".hidden").exists());
    assert_eq!(push(&from, &store, &TERMS).await.unwrap().sent_bytes, 0);
    // One that was cut off has no manifest yet.
    fs::remove_file(to.join(MANIFEST_NAME)).unwrap();
    fs::remove_file(to.join("sub/tokenizer.json")).unwrap();
    assert_eq!(push(&from, &store, &TERMS).await.unwrap().sent_bytes, 2);
    assert!(manifest_in(&store).await.unwrap().is_some());
    // As a region's store is filled.
    let far = self::store(&root.path().join("far"));
    let manifest = manifest_in(&store).await.unwrap().unwrap();
    let told = Cell::new((0, 0));
    let tell = |done, all| told.set((done, all));
    let copied = publish(&Origin::Store(store), &manifest, &far, &TERMS, &tell).await.unwrap();
    assert_eq!((copied.sent_bytes, told.get()), (all, (all, all)));
    assert_eq!(manifest_in(&far).await.unwrap(), Some(manifest));
}

#[tokio::test]
async fn another_model_is_taken_away_only_when_it_is_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("to"));
    model(&from);
    let store = store(&to);
    push(&from, &store, &TERMS).await.unwrap();
    fs::write(from.join("sub/tokenizer.json"), "{}").unwrap();
    fs::remove_file(from.join("empty.txt")).unwrap();
    let said = push(&from, &store, &TERMS).await.unwrap_err().to_string();
    assert!(said.contains("holds another model") && said.contains("--replace"), "{said}");
    assert_eq!(fs::read_to_string(to.join("sub/tokenizer.json")).unwrap(), "[]");
    let sent = push(&from, &store, &Terms { replaces: true, ..TERMS }).await.unwrap().sent_bytes;
    assert_eq!((sent, fs::read_to_string(to.join("sub/tokenizer.json")).unwrap().as_str()), (2, "{}"));
    assert!(!to.join("empty.txt").exists(), "of the model before");
}

#[tokio::test]
async fn bytes_that_are_not_the_manifests_are_not_published() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("to"));
    model(&from);
    let manifest = manifest_of_directory(&from, &|_, _| {}).await.unwrap();
    fs::write(from.join(MANIFEST_NAME), manifest.to_json()).unwrap();
    let mut bytes = fs::read(from.join("weights.bin")).unwrap();
    bytes[PIECE_BYTES as usize * 3 + 1] ^= 1;
    fs::write(from.join("weights.bin"), &bytes).unwrap();
    let said = format!("{:#}", push(&from, &store(&to), &TERMS).await.unwrap_err());
    assert!(
        said.contains("weights.bin: has not the bytes of the manifest, in bytes 12582912 to 16777215"),
        "{said}"
    );
    assert!(!to.join("weights.bin").exists() && !to.join(MANIFEST_NAME).exists());
    std::os::unix::fs::symlink("/etc/hostname", from.join("link.txt")).unwrap();
    let said = push(&from, &store(&to), &TERMS).await.unwrap_err().to_string();
    assert!(said.contains("link.txt leads out of the model's directory"), "{said}");
    fs::remove_file(from.join("link.txt")).unwrap();
    fs::write(from.join("more.py"), "").unwrap();
    let said = push(&from, &store(&to), &TERMS).await.unwrap_err().to_string();
    assert!(said.contains("more.py is not in"), "{said}");
}

#[tokio::test]
async fn a_shard_that_is_cut_off_is_named_before_anything_is_sent() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("to"));
    model(&from);
    fs::write(from.join("model.safetensors"), b"\x40\0\0\0\0\0\0\0{}").unwrap();
    let said = format!("{:#}", push(&from, &store(&to), &TERMS).await.unwrap_err());
    assert!(said.contains("model.safetensors: "), "{said}");
    assert!(!to.exists());
}
