//! A model fetched from a real server of the S3 protocol by a process that is killed, and by the one after it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fleet_tests::process::{S3Server, binary};

use crate::{SOME_ARE_WHOLE, write_model};

/// Twice what is under way at once.
const WEIGHT_BYTES: usize = 64 << 20;

const SOON: Duration = Duration::from_secs(60);

fn fetch(server: &S3Server, directory: &Path) -> Command {
    let mut command = Command::new(binary("cic-agent").expect("built"));
    command.arg("fetch").arg(server.url()).arg(directory).envs(server.keys());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

/// Until some pieces of the weights are on the disk.
fn wait_part(child: &mut Child, staged: &Path) {
    let began = Instant::now();
    let blocks = || fs::metadata(staged).map_or(0, |found| std::os::unix::fs::MetadataExt::blocks(&found));
    while blocks() * 512 < SOME_ARE_WHOLE {
        assert!(child.try_wait().expect("asked").is_none(), "it ended before it could be killed");
        assert!(began.elapsed() < SOON, "nothing comes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn published() -> S3Server {
    let server = S3Server::start().expect("a server");
    let source = server.bucket().join("test");
    write_model(&source, WEIGHT_BYTES);
    let mut manifest = Command::new(binary("cic-agent").expect("built"));
    assert!(manifest.arg("manifest").arg(&source).stdout(Stdio::null()).status().expect("it runs").success());
    server
}

#[test]
fn a_fetch_that_was_killed_is_gone_on_with_and_one_flipped_byte_costs_one_piece() {
    let server = published();
    let root = tempfile::tempdir().expect("a directory");
    let directory = root.path().join("model");
    let mut killed = fetch(&server, &directory).spawn().expect("it starts");
    wait_part(&mut killed, &root.path().join(".model.cic-fetch/model.safetensors"));
    server.pause(true);
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    server.pause(false);
    assert!(!directory.exists(), "nothing is there until all is");
    let second = said(&fetch(&server, &directory).output().expect("it runs"));
    println!("{second}");
    assert!(second.contains("is whole to the last byte: 2 files, 64.0 MiB"), "{second}");
    assert!(!second.contains("64.0 MiB fetched"), "what had come is not fetched again: {second}");
    let weights = directory.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("read");
    bytes[WEIGHT_BYTES / 2] ^= 1;
    fs::write(&weights, bytes).expect("written");
    let third = said(&fetch(&server, &directory).output().expect("it runs"));
    println!("{third}");
    assert!(third.contains("; 4.0 MiB fetched"), "{third}");
    let fourth = said(&fetch(&server, &directory).output().expect("it runs"));
    assert!(fourth.contains("; 0 B fetched"), "{fourth}");
}

#[test]
fn a_store_that_does_not_have_it_is_named_with_the_way_out() {
    let server = S3Server::start().expect("a server");
    let root = tempfile::tempdir().expect("a directory");
    let output = fetch(&server, &root.path().join("model")).output().expect("it runs");
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("has no cic-manifest.json: have `cic-agent manifest DIR`"), "{said}");
    assert_eq!(fs::read_dir(root.path()).expect("listed").count(), 0, "nothing is left");
}
