use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cic_common::model::Manifest;
use cic_common::model::manifest::MANIFEST_NAME;
use cic_common::model::tree::PIECE_BYTES;
use cic_common::objects::{Store, Stores};
use cic_common::time::unix_ms;

use super::feed::Feed;
use super::runs::{Run, Runs};
use super::staging::{Staging, require};
use super::target::{Tally, Target};
use super::wanted::wanted;
use super::*;
use crate::effect::model::content::{Effort, Ledger, check, make};

const PIECE: usize = PIECE_BYTES as usize;
const WEIGHTS: &str = "model.safetensors";

/// Bytes of the files of [`published`].
const ALL: u64 = PIECE_BYTES * 5 + 77 + 4;

fn quietly() -> Effort<'static> {
    Effort { threads: 2, progress: &|_| {} }
}

/// A model as it is published, and its store.
fn published(root: &Path) -> (Store, Manifest) {
    let source = root.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    let bytes: Vec<u8> = (0..PIECE * 5 + 77).map(|at| (at ^ (at >> 9) ^ (at >> 20)) as u8).collect();
    fs::write(source.join(WEIGHTS), bytes).unwrap();
    fs::write(source.join("config.json"), "{}").unwrap();
    fs::write(source.join("sub/tokenizer.json"), "[]").unwrap();
    fs::write(source.join("empty.txt"), "").unwrap();
    let manifest = make(&source, false, &[], &quietly()).unwrap();
    fs::write(source.join(MANIFEST_NAME), manifest.to_json()).unwrap();
    let url = format!("file://{}", source.display());
    let store = Stores::open([url.as_str()]).unwrap().all.remove(0);
    (store, manifest)
}

fn assert_whole(directory: &Path, manifest: &Manifest) {
    let checked = check(directory, manifest, &[], &mut Ledger::default(), &quietly()).unwrap();
    assert_eq!(checked.findings, []);
    assert_eq!(fs::read_to_string(directory.join(MANIFEST_NAME)).unwrap(), manifest.to_json());
    let hidden = fs::read_dir(directory).unwrap().flatten();
    let hidden: Vec<_> = hidden
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

fn only(store: &Store) -> Places {
    Places { store: store.clone(), neighbours: None }
}

async fn fetched_bytes(store: &Store, manifest: &Manifest, directory: &Path) -> u64 {
    fetch(&only(store), manifest, directory, &[], &mut Ledger::default(), &quietly())
        .await
        .unwrap()
        .fetched_bytes
}

#[tokio::test]
async fn a_model_that_is_not_there_appears_as_a_whole_and_is_not_fetched_twice() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = published(root.path());
    let manifest = manifest_of(&store).await.unwrap();
    let directory = root.path().join("cache/model");
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, ALL);
    assert_whole(&directory, &manifest);
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, 0);
    let left: Vec<_> = fs::read_dir(root.path().join("cache")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn what_was_fetched_is_not_read_again_by_the_look_that_follows() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    let place = root.path().join("verified.json");
    // A file that was changed just now may change again unseen.
    let later = || Ledger::open(place.clone(), unix_ms() + 10_000);
    fetch(&only(&store), &manifest, &directory, &[], &mut later(), &quietly()).await.unwrap();
    let checked = check(&directory, &manifest, &[], &mut later(), &quietly()).unwrap();
    assert_eq!((checked.findings.len(), checked.bytes, checked.known_bytes), (0, ALL, ALL));
    fs::remove_file(directory.join("sub/tokenizer.json")).unwrap();
    fetch(&only(&store), &manifest, &directory, &[], &mut later(), &quietly()).await.unwrap();
    let checked = check(&directory, &manifest, &[], &mut later(), &quietly()).unwrap();
    assert_eq!((checked.findings.len(), checked.known_bytes), (0, ALL));
}

#[tokio::test]
async fn one_flipped_byte_costs_one_piece() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    fetched_bytes(&store, &manifest, &directory).await;
    let mut bytes = fs::read(directory.join(WEIGHTS)).unwrap();
    bytes[PIECE * 2 + 5] ^= 1;
    fs::write(directory.join(WEIGHTS), bytes).unwrap();
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, PIECE_BYTES);
    assert_whole(&directory, &manifest);
}

#[tokio::test]
async fn a_file_cut_off_grown_or_missing_costs_what_it_lacks() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    fetched_bytes(&store, &manifest, &directory).await;
    let weights = directory.join(WEIGHTS);
    let cut = |length: u64| fs::File::options().write(true).open(&weights).unwrap().set_len(length).unwrap();
    cut(PIECE_BYTES * 3 + 1);
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, PIECE_BYTES * 2 + 77);
    cut(PIECE_BYTES * 6);
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, 0, "it had all, and more");
    fs::remove_file(directory.join("sub/tokenizer.json")).unwrap();
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, 2);
    assert_whole(&directory, &manifest);
}

#[tokio::test]
async fn a_run_that_was_cut_off_leaves_nothing_to_be_loaded_and_is_gone_on_with() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    // As a kill leaves it: two pieces right, one torn, the rest holes.
    let whole = fs::read(root.path().join("source").join(WEIGHTS)).unwrap();
    let mut torn = vec![0; whole.len()];
    torn[..PIECE * 2 + 1000].copy_from_slice(&whole[..PIECE * 2 + 1000]);
    let staging = root.path().join(".model.cic-fetch");
    fs::create_dir_all(&staging).unwrap();
    fs::write(staging.join(WEIGHTS), torn).unwrap();
    assert!(!directory.exists());
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, ALL - PIECE_BYTES * 2);
    assert_whole(&directory, &manifest);
}

#[tokio::test]
async fn a_store_with_other_bytes_is_named_and_nothing_of_it_is_published() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let source = root.path().join("source").join(WEIGHTS);
    let mut bytes = fs::read(&source).unwrap();
    bytes[PIECE + 1] ^= 1;
    fs::write(&source, &bytes).unwrap();
    let directory = root.path().join("model");
    let fault = fetch(&only(&store), &manifest, &directory, &[], &mut Ledger::default(), &quietly())
        .await
        .unwrap_err();
    let said = format!("{fault:#}");
    assert!(said.contains("model.safetensors, bytes 4194304 to 8388607: it has not the bytes"), "{said}");
    assert!(!directory.exists());
    fs::remove_file(&source).unwrap();
    let fault = fetch(&only(&store), &manifest, &directory, &[], &mut Ledger::default(), &quietly())
        .await
        .unwrap_err();
    assert!(format!("{fault:#}").contains("has no model.safetensors"), "{fault:#}");
    // Once the store is right, what had come is not fetched again.
    bytes[PIECE + 1] ^= 1;
    fs::write(&source, &bytes).unwrap();
    assert!(fetched_bytes(&store, &manifest, &directory).await <= ALL - PIECE_BYTES);
    assert_whole(&directory, &manifest);
}

#[tokio::test]
async fn what_is_none_of_the_models_is_not_touched() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    fetched_bytes(&store, &manifest, &directory).await;
    fs::write(directory.join("notes.py"), "mine").unwrap();
    fs::write(directory.join("config.json"), "[]").unwrap();
    let fault = fetch(&only(&store), &manifest, &directory, &[], &mut Ledger::default(), &quietly())
        .await
        .unwrap_err()
        .to_string();
    assert!(fault.contains("notes.py: is not in the manifest; take it away first"), "{fault}");
    for (name, text) in [("notes.py", "mine"), ("config.json", "[]")] {
        assert_eq!(fs::read_to_string(directory.join(name)).unwrap(), text);
    }
}

#[tokio::test]
async fn a_link_to_a_wrong_file_is_replaced_and_the_file_behind_it_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let snapshot = root.path().join("models--o--m/snapshots/1");
    fetched_bytes(&store, &manifest, &snapshot).await;
    let blob = root.path().join("models--o--m/blobs/abc");
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, "[]").unwrap();
    fs::remove_file(snapshot.join("config.json")).unwrap();
    std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("config.json")).unwrap();
    assert_eq!(fetched_bytes(&store, &manifest, &snapshot).await, 2);
    assert_eq!(fs::read_to_string(&blob).unwrap(), "[]");
    assert_whole(&snapshot, &manifest);
}

#[test]
fn a_disk_without_room_is_told_before_anything_is_fetched() {
    assert!(require(10, 10).is_ok());
    let said = require(3 << 30, 1 << 30).unwrap_err().to_string();
    assert_eq!(said, "3.0 GiB are to be written and there is room for 1.0 GiB: free 2.0 GiB more");
}

#[tokio::test]
async fn a_file_with_another_name_elsewhere_is_replaced_and_not_written_to() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    fetched_bytes(&store, &manifest, &directory).await;
    let (mine, elsewhere) = (directory.join("config.json"), root.path().join("of another version"));
    fs::write(&mine, "[]").unwrap();
    fs::set_permissions(&mine, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    fs::hard_link(&mine, &elsewhere).unwrap();
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, 2);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "[]");
    assert_whole(&directory, &manifest);
}

#[tokio::test]
async fn what_a_run_by_another_manifest_left_is_not_published() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    let staging = root.path().join(".model.cic-fetch");
    fs::create_dir_all(staging.join("sub")).unwrap();
    fs::write(staging.join("model-00003-of-00003.safetensors"), "torn").unwrap();
    fs::write(staging.join("sub/old.py"), "").unwrap();
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, ALL);
    assert_whole(&directory, &manifest);
}

#[tokio::test]
async fn a_manifest_that_names_hidden_files_or_itself_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    for path in [".git/hooks/post-checkout", "sub/.cache/x", ".cic-lock", MANIFEST_NAME] {
        let mut wrong = manifest.clone();
        wrong.add(path, manifest.file("config.json").unwrap().clone()).unwrap();
        let fault = fetch(&only(&store), &wrong, &directory, &[], &mut Ledger::default(), &quietly())
            .await
            .unwrap_err()
            .to_string();
        assert!(fault.contains(path) && fault.contains("no file of a model"), "{fault}");
        assert!(!directory.exists());
    }
}

#[tokio::test]
async fn names_are_asked_for_as_they_stand() {
    let root = tempfile::tempdir().unwrap();
    let (store, _) = published(root.path());
    let source = root.path().join("source");
    fs::write(source.join("a~b #1é.json"), "1").unwrap();
    let manifest = make(&source, false, &[], &quietly()).unwrap();
    let directory = root.path().join("model");
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, ALL + 1);
    assert_whole(&directory, &manifest);
}

#[tokio::test]
async fn one_directory_is_fetched_by_one_process_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let (store, manifest) = published(root.path());
    let directory = root.path().join("model");
    let held = super::staging::Staging::open(&directory).unwrap();
    let fault = fetch(&only(&store), &manifest, &directory, &[], &mut Ledger::default(), &quietly())
        .await
        .unwrap_err()
        .to_string();
    assert!(fault.contains("is being fetched by another process"), "{fault}");
    drop(held);
    assert_eq!(fetched_bytes(&store, &manifest, &directory).await, ALL);
}

#[tokio::test]
async fn bytes_count_by_the_piece_in_whatever_parts_they_come_and_none_is_taken_beyond_those_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let (_, manifest) = published(root.path());
    let bytes = fs::read(root.path().join("source").join(WEIGHTS)).unwrap();
    let staging = Arc::new(Staging::open(&root.path().join("model")).unwrap());
    let files =
        wanted(&manifest, &root.path().join("model"), &[], &mut Ledger::default(), &staging, &quietly())
            .unwrap();
    let weights = files.into_iter().find(|file| file.path == WEIGHTS).unwrap();
    let target = Target::open(weights, &staging).unwrap();
    let tally = Tally::default();
    let staged = || fs::read(staging.path(WEIGHTS)).unwrap();

    let mut feed = Feed::new(&target, &tally, 1..3);
    for part in bytes[PIECE..PIECE * 3].chunks(1_300_001) {
        assert!(feed.take(Bytes::copy_from_slice(part)).await.unwrap());
    }
    assert_eq!((feed.piece, tally.done_bytes.load(Ordering::Relaxed)), (3, PIECE_BYTES * 2));
    assert!(!feed.take(Bytes::from_static(b"more")).await.unwrap());
    assert_eq!(staged()[PIECE..PIECE * 3], bytes[PIECE..PIECE * 3]);
    assert_eq!(staged()[PIECE * 3..][..4], [0; 4]);

    let mut other = bytes[PIECE * 3..PIECE * 4].to_vec();
    other[PIECE - 1] ^= 1;
    assert!(!Feed::new(&target, &tally, 3..4).take(Bytes::from(other)).await.unwrap());
    assert_eq!(tally.done_bytes.load(Ordering::Relaxed), PIECE_BYTES * 2);
}

#[test]
fn runs_are_taken_in_turn_and_less_of_them_the_less_is_left() {
    let root = tempfile::tempdir().unwrap();
    let (_, manifest) = published(root.path());
    let staging = Arc::new(Staging::open(&root.path().join("model")).unwrap());
    let files =
        wanted(&manifest, &root.path().join("model"), &[], &mut Ledger::default(), &staging, &quietly());
    let targets: Vec<_> =
        files.unwrap().into_iter().map(|file| Target::open(file, &staging).unwrap()).collect();
    let runs = Runs::default();
    runs.add(&targets[0], (0..200).chain(300..301));
    runs.add(&targets[1], 0..200);
    let taken = std::iter::from_fn(|| runs.take(8)).collect::<Vec<_>>();
    let of = |run: &Run| (usize::from(Arc::ptr_eq(&run.target, &targets[1])), run.first, run.count);
    assert_eq!(
        taken.iter().take(4).map(of).collect::<Vec<_>>(),
        [(0, 0, 8), (0, 300, 1), (1, 0, 8), (0, 8, 8)]
    );
    assert!(taken.iter().rev().take(24).all(|run| run.count == 1), "the end of it goes to whoever has time");
    for (index, pieces) in [(0, (0..200).chain(300..301).collect::<Vec<u64>>()), (1, (0..200).collect())] {
        let its = taken.iter().filter(|run| of(run).0 == index);
        let mut its: Vec<u64> = its.flat_map(|run| run.first..run.first + run.count).collect();
        its.sort_unstable();
        assert_eq!(its, pieces);
    }
    assert!(runs.is_empty());
}
