use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cic_common::model::Manifest;
use cic_common::model::manifest::{Blake3, Content, MANIFEST_NAME, Sha256};
use cic_common::model::tree::PIECE_BYTES;
use cic_common::time::unix_ms;

use super::hash::{Hashed, Job, Kind, hash};
use super::*;

const PIECE: usize = PIECE_BYTES as usize;
const WEIGHTS: &str = "model.safetensors";

fn quietly() -> Effort<'static> {
    Effort { threads: 3, progress: &|_| {} }
}

/// A model of a file of three pieces and a small one, in a folder of its own.
fn whole() -> (tempfile::TempDir, Manifest) {
    let root = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..PIECE * 2 + 77).map(|at| (at ^ (at >> 9)) as u8).collect();
    fs::write(root.path().join(WEIGHTS), bytes).unwrap();
    fs::write(root.path().join("config.json"), "{}").unwrap();
    fs::create_dir(root.path().join("sub")).unwrap();
    fs::write(root.path().join("sub/tokenizer.json"), "[]").unwrap();
    let manifest = make(root.path(), false, &[], &quietly()).unwrap();
    (root, manifest)
}

fn findings(directory: &Path, manifest: &Manifest) -> Vec<String> {
    let checked = check(directory, manifest, &[], &mut Ledger::default(), &quietly()).unwrap();
    checked.findings.iter().map(ToString::to_string).collect()
}

fn edit(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(dir.join(WEIGHTS)).unwrap();
    change(&mut bytes);
    fs::write(dir.join(WEIGHTS), bytes).unwrap();
}

/// What is done to a whole model, and what is said of it.
type Damage = (&'static str, fn(&Path), &'static str);

const DAMAGES: [Damage; 14] = [
    (
        "one flipped byte",
        |dir| edit(dir, |bytes| bytes[PIECE + 9] ^= 1),
        "model.safetensors: has not the bytes of the manifest, in bytes 4194304 to 8388607",
    ),
    (
        "a flipped byte in the last piece",
        |dir| edit(dir, |bytes| *bytes.last_mut().unwrap() ^= 1),
        "model.safetensors: has not the bytes of the manifest, in bytes 8388608 to 8388684",
    ),
    (
        "a zero tail",
        |dir| edit(dir, |bytes| bytes[PIECE + 1..].fill(0)),
        "model.safetensors: has not the bytes of the manifest, in bytes 4194304 to 8388684",
    ),
    (
        "a zeroed header",
        |dir| edit(dir, |bytes| bytes[..64].fill(0)),
        "model.safetensors: has not the bytes of the manifest, in bytes 0 to 4194303",
    ),
    (
        "cut off",
        |dir| edit(dir, |bytes| bytes.truncate(PIECE + 1)),
        "model.safetensors: has 4194305 bytes where the manifest says 8388685: cut off",
    ),
    (
        "grown",
        |dir| edit(dir, |bytes| bytes.push(0)),
        "model.safetensors: has 8388686 bytes where the manifest says 8388685: something was added",
    ),
    (
        "a web page",
        |dir| fs::write(dir.join(WEIGHTS), "<!DOCTYPE html><html>503</html>").unwrap(),
        "model.safetensors: has 31 bytes where the manifest says 8388685: cut off",
    ),
    ("missing", |dir| fs::remove_file(dir.join(WEIGHTS)).unwrap(), "model.safetensors: is not there"),
    (
        "missing with its folder",
        |dir| fs::remove_dir_all(dir.join("sub")).unwrap(),
        "sub/tokenizer.json: is not there",
    ),
    (
        "extra",
        |dir| fs::write(dir.join("sub/modeling.py"), "").unwrap(),
        "sub/modeling.py: is not in the manifest",
    ),
    (
        "another name in case",
        |dir| fs::write(dir.join("Config.json"), "{}").unwrap(),
        "Config.json: is not in the manifest",
    ),
    (
        "a link out",
        |dir| {
            fs::remove_file(dir.join("config.json")).unwrap();
            symlink("/etc/hostname", dir.join("config.json")).unwrap();
        },
        "config.json: leads out of the model's directory, to /etc/hostname",
    ),
    (
        "a folder that is a link out",
        |dir| {
            let elsewhere = tempfile::tempdir().unwrap();
            fs::rename(dir.join("sub"), elsewhere.path().join("sub")).unwrap();
            symlink(elsewhere.keep().join("sub"), dir.join("sub")).unwrap();
        },
        "sub/tokenizer.json: leads out of the model's directory",
    ),
    (
        "a folder in a file's place",
        |dir| {
            fs::remove_file(dir.join("config.json")).unwrap();
            fs::create_dir(dir.join("config.json")).unwrap();
        },
        "config.json: is no file",
    ),
];

#[test]
fn each_damage_is_told_by_its_file_its_cause_and_its_place() {
    for (what, damage, said) in DAMAGES {
        let (root, manifest) = whole();
        assert_eq!(findings(root.path(), &manifest), [""; 0], "{what}");
        damage(root.path());
        let found = findings(root.path(), &manifest);
        assert!(found.iter().any(|finding| finding.starts_with(said)), "{what}: {found:?}");
    }
}

#[test]
fn all_that_is_wrong_is_found_at_once() {
    let (root, manifest) = whole();
    edit(root.path(), |bytes| {
        bytes[0] ^= 1;
        bytes[PIECE * 2] ^= 1;
    });
    fs::write(root.path().join("config.json"), "[]").unwrap();
    let wanted = [
        "config.json: has not the bytes of the manifest, in bytes 0 to 1",
        "model.safetensors: has not the bytes of the manifest, in bytes 0 to 4194303, 8388608 to 8388684",
    ];
    assert_eq!(findings(root.path(), &manifest), wanted);
}

#[test]
fn a_file_cut_off_or_grown_names_the_stretches_to_be_mended() {
    for (length, wanted) in [(PIECE + 1, vec![(PIECE_BYTES, PIECE_BYTES + 77)]), (PIECE * 2 + 78, vec![])] {
        let (root, manifest) = whole();
        edit(root.path(), |bytes| bytes.resize(length, 0));
        let checked = check(root.path(), &manifest, &[], &mut Ledger::default(), &quietly()).unwrap();
        match &checked.findings[..] {
            [Finding { wrong: Wrong::Length { ranges, .. }, .. }] => assert_eq!(*ranges, wanted, "{length}"),
            other => panic!("{length}: {other:?}"),
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_not_taken_for_whole() {
    let (root, manifest) = whole();
    let path = root.path().join(WEIGHTS);
    let same = fs::read(&path).unwrap();
    // Written with the bytes that it had: its hash is right, and what comes next is anybody's guess.
    let write = |_| fs::write(&path, &same).unwrap();
    let effort = Effort { threads: 1, progress: &write };
    let mut ledger = Ledger::default();
    let checked = check(root.path(), &manifest, &[], &mut ledger, &effort).unwrap();
    let found: Vec<_> = checked.findings.iter().map(ToString::to_string).collect();
    assert!(found.contains(&"model.safetensors: was changed while it was read".to_owned()), "{found:?}");
    assert!(checked.findings.iter().all(|finding| finding.wrong.may_heal()));
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_byte_and_the_cause() {
    // The memory of this process has nothing at its beginning: the kernel says EIO.
    let job = Job { path: "/proc/self/mem".into(), size: PIECE_BYTES * 3, kind: Kind::Pieces };
    let hashed = hash(&[job], &quietly()).unwrap();
    match &hashed[..] {
        [Hashed::Unreadable { error, .. }] => assert_eq!(error.raw_os_error(), Some(5), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sha256_alone_and_blake3_without_pieces_find_the_file_but_not_the_place() {
    let (root, manifest) = whole();
    let bytes = fs::read(root.path().join(WEIGHTS)).unwrap();
    let of = |content: Content| {
        let mut other = Manifest::default();
        for (path, known) in manifest.files() {
            other.add(path, if path == WEIGHTS { content.clone() } else { known.clone() }).unwrap();
        }
        other
    };
    let plain = Content { size: None, blake3: None, sha256: Some(Sha256::of(&bytes)) };
    let root_only = Content { size: None, blake3: Some(Blake3::Whole(blake3::hash(&bytes))), sha256: None };
    for manifest in [of(plain), of(root_only)] {
        assert_eq!(findings(root.path(), &manifest), [""; 0]);
        edit(root.path(), |bytes| bytes[7] ^= 1);
        assert_eq!(
            findings(root.path(), &manifest),
            ["model.safetensors: has not the bytes of the manifest"]
        );
        edit(root.path(), |bytes| bytes[7] ^= 1);
    }
}

#[test]
fn a_manifest_of_ours_may_have_both_hashes_and_is_read_from_the_directory() {
    let (root, _) = whole();
    assert_eq!(read_manifest(root.path(), None), Ok(None));
    let manifest = make(root.path(), true, &[], &quietly()).unwrap();
    fs::write(root.path().join(MANIFEST_NAME), manifest.to_json()).unwrap();
    assert_eq!(read_manifest(root.path(), None).unwrap(), Some(manifest.clone()));
    let bytes = fs::read(root.path().join(WEIGHTS)).unwrap();
    let content = manifest.file(WEIGHTS).unwrap();
    assert_eq!(content.sha256, Some(Sha256::of(&bytes)));
    assert_eq!(content.blake3.as_ref().map(Blake3::root), Some(blake3::hash(&bytes)));
    // It does not name itself, and is nothing extra.
    assert_eq!(findings(root.path(), &manifest), [""; 0]);
    fs::write(root.path().join(MANIFEST_NAME), "{").unwrap();
    let fault = read_manifest(root.path(), None).unwrap_err().to_string();
    assert!(fault.contains(MANIFEST_NAME) && fault.contains("is no manifest"), "{fault}");
}

#[test]
fn what_was_right_and_is_unchanged_is_not_read_again() {
    let (root, manifest) = whole();
    let place = root.path().join(".verified.json");
    // Nothing is remembered of a file that was changed just now.
    let later_ms = unix_ms() + 10_000;
    let read_bytes = |manifest: &Manifest| {
        let read = AtomicU64::new(0);
        let progress = |progress: Progress| {
            read.fetch_max(progress.done_bytes, Ordering::Relaxed);
        };
        let effort = Effort { threads: 2, progress: &progress };
        let checked =
            check(root.path(), manifest, &[], &mut Ledger::open(place.clone(), later_ms), &effort).unwrap();
        (read.into_inner(), checked.known_bytes, checked.findings.len())
    };
    let all = (PIECE * 2 + 77 + 4) as u64;
    assert_eq!(read_bytes(&manifest), (all, 0, 0));
    assert_eq!(read_bytes(&manifest), (0, all, 0));
    // Written anew, with a flipped byte: found, and not remembered as right.
    edit(root.path(), |bytes| bytes[1] ^= 1);
    assert_eq!(read_bytes(&manifest), (all - 4, 4, 1));
    assert_eq!(read_bytes(&manifest), (all - 4, 4, 1));
    // By another manifest the same bytes are right.
    let other = make(root.path(), false, &[], &quietly()).unwrap();
    assert_eq!(read_bytes(&other), (all - 4, 4, 0));
    assert_eq!(read_bytes(&other), (0, all, 0));
    fs::write(&place, "no JSON").unwrap();
    assert_eq!(read_bytes(&other), (all, 0, 0));
}

#[test]
fn a_file_that_was_changed_just_now_is_not_remembered() {
    let (root, manifest) = whole();
    let place = root.path().join(".verified.json");
    let known = |now_ms| {
        let mut ledger = Ledger::open(place.clone(), now_ms);
        check(root.path(), &manifest, &[], &mut ledger, &quietly()).unwrap().known_bytes
    };
    assert_eq!([known(unix_ms()), known(unix_ms())], [0, 0]);
}

#[test]
fn what_was_right_before_the_machine_started_counts_for_nothing() {
    let (root, manifest) = whole();
    let place = root.path().join(".verified.json");
    let known = || {
        let mut ledger = Ledger::open(place.clone(), unix_ms() + 10_000);
        check(root.path(), &manifest, &[], &mut ledger, &quietly()).unwrap().known_bytes
    };
    assert_eq!(known(), 0);
    assert_ne!(known(), 0);
    let mut kept: serde_json::Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
    kept["boot"] = "another".into();
    fs::write(&place, kept.to_string()).unwrap();
    assert_eq!(known(), 0);
}

#[test]
fn a_right_hash_with_a_wrong_length_is_refused_though_the_file_is_known() {
    let (root, manifest) = whole();
    let place = root.path().join(".verified.json");
    let found = |manifest: &Manifest| {
        let mut ledger = Ledger::open(place.clone(), unix_ms() + 10_000);
        check(root.path(), manifest, &[], &mut ledger, &quietly()).unwrap().findings.len()
    };
    assert_eq!([found(&manifest), found(&manifest)], [0, 0]);
    let mut wrong = Manifest::default();
    for (path, content) in manifest.files() {
        let size = content.size.map(|size| if path == "config.json" { size + 1 } else { size });
        wrong.add(path, Content { size, ..content.clone() }).unwrap();
    }
    assert_eq!(found(&wrong), 1);
}

#[test]
fn a_manifest_or_a_cache_in_the_directory_is_nothing_extra() {
    let (root, _) = whole();
    let real = root.path().canonicalize().unwrap();
    let besides = [real.join("other.json")];
    fs::write(&besides[0], "left of the last run").unwrap();
    let manifest = make(root.path(), false, &besides, &quietly()).unwrap();
    assert!(manifest.file("other.json").is_none());
    let checked = check(root.path(), &manifest, &besides, &mut Ledger::default(), &quietly()).unwrap();
    assert_eq!(checked.findings, []);
    assert_eq!(findings(root.path(), &manifest), ["other.json: is not in the manifest"]);
}

#[test]
fn a_file_that_one_thread_must_read_whole_tells_of_each_part() {
    let (root, manifest) = whole();
    let bytes = fs::read(root.path().join(WEIGHTS)).unwrap();
    let mut plain = Manifest::default();
    for (path, content) in manifest.files() {
        let sha256 = if path == WEIGHTS { Some(Sha256::of(&bytes)) } else { None };
        let blake3 = if path == WEIGHTS { None } else { content.blake3.clone() };
        plain.add(path, Content { size: content.size, blake3, sha256 }).unwrap();
    }
    let told = AtomicU64::new(0);
    let progress = |_| {
        told.fetch_add(1, Ordering::Relaxed);
    };
    let effort = Effort { threads: 1, progress: &progress };
    let checked = check(root.path(), &plain, &[], &mut Ledger::default(), &effort).unwrap();
    assert_eq!(checked.findings, []);
    assert_eq!(told.into_inner(), 5, "three for the weights, one for each other file");
}
