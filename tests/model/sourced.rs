//! An agent whose model is not where it should be: it is fetched, gone on with after a kill, and repaired.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fleet_tests::process::{S3Server, Solo, SoloOptions, binary, request};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{SOME_ARE_WHOLE, write_model};

/// Twice what is under way at once.
const WEIGHT_BYTES: usize = 64 << 20;

const SOON: Duration = Duration::from_secs(90);

/// A server that has a model with its manifest.
fn published() -> S3Server {
    let server = S3Server::start().expect("a server");
    let source = server.bucket().join("test");
    write_model(&source, WEIGHT_BYTES);
    fs::write(source.join("config.json"), r#"{"max_position_embeddings": 4096}"#).expect("written");
    let mut manifest = Command::new(binary("cic-agent").expect("built"));
    assert!(manifest.arg("manifest").arg(&source).stdout(Stdio::null()).status().expect("it runs").success());
    server
}

fn agent(server: &S3Server, place: &Path) -> Solo {
    let mut options = SoloOptions::standin(place).expect("a stand-in");
    options.model = place.join("cache/tiny");
    options.sources = vec![place.join("share/tiny").display().to_string(), server.url()];
    options.env = server.keys();
    Solo::start(options).expect("an agent")
}

fn reason(report: &Value) -> &str {
    report["reason"].as_str().unwrap_or_default()
}

fn done(report: &Value) -> Option<u64> {
    report["model"]["done"].as_u64()
}

fn completes(solo: &Solo) {
    let body = json!({"model": "tiny", "prompt": "one two", "max_tokens": 3}).to_string();
    let edge = solo.address("edge").expect("an edge");
    let answer = request(&edge, "POST", "/v1/completions", Some(&body), SOON).expect("an answer");
    assert_eq!(answer.status, 200);
}

/// Until some pieces are on the disk.
fn wait_part(staged: &Path) {
    let began = Instant::now();
    while fs::metadata(staged).map_or(0, |found| found.blocks()) * 512 < SOME_ARE_WHOLE {
        assert!(began.elapsed() < SOON, "nothing comes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_model_that_is_nowhere_is_fetched_with_progress_over_a_kill_and_then_served() {
    let (server, place) = (published(), tempfile::tempdir().expect("a directory"));
    let mut solo = agent(&server, place.path());
    wait_part(&place.path().join("cache/.tiny.cic-fetch/model.safetensors"));
    server.pause(true);
    let part = |report: &Value| done(report).filter(|done| *done > 0).map(|_| report.clone());
    let report = solo.wait_for("progress", SOON, part).expect("it is fetched");
    println!("{}; {}", reason(&report), report["model"]);
    assert_eq!(report["phase"], "mounting");
    for said in ["ModelNotCached: no model directory", "share/tiny", "fetching from s3://fleet/test"] {
        assert!(reason(&report).contains(said), "{said}: {report:#}");
    }
    solo.end_agent(Signal::SIGKILL).expect("killed");
    server.pause(false);
    solo.start_agent().expect("it starts");
    solo.wait_serving(SOON).expect("it serves");
    completes(&solo);
    let log = solo.log();
    let fetched = log.lines().rfind(|line| line.contains("were fetched")).expect("a line on it");
    println!("{fetched}");
    assert!(!fetched.contains("of which 64.0 MiB"), "what had come is not fetched again: {fetched}");
}

#[test]
fn a_flipped_byte_is_repaired_before_an_engine_sees_it() {
    let (server, place) = (published(), tempfile::tempdir().expect("a directory"));
    let directory = place.path().join("cache/tiny");
    write_model(&directory, WEIGHT_BYTES);
    for name in ["config.json", "cic-manifest.json"] {
        fs::copy(server.bucket().join("test").join(name), directory.join(name)).expect("copied");
    }
    let weights = directory.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("read");
    bytes[WEIGHT_BYTES / 2] ^= 1;
    fs::write(&weights, &bytes).expect("written");
    let mut solo = agent(&server, place.path());
    solo.wait_serving(SOON).expect("it serves");
    bytes[WEIGHT_BYTES / 2] ^= 1;
    assert!(fs::read(&weights).expect("read") == bytes, "repaired");
    let log = solo.log();
    assert!(log.contains("has not the bytes of the manifest"), "{log}");
    assert!(log.contains("of which 4.0 MiB were fetched"), "{log}");
    completes(&solo);
}
