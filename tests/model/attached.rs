//! An agent that mounts where its model lies, and mounts it anew when the daemon of the mount is killed under it.

use std::fs;
use std::time::Duration;

use cic_common::process::Process;
use fleet_tests::process::{S3Server, Solo, SoloOptions, binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{place, write_model};

/// Some seconds of the test's server.
const WEIGHT_BYTES: usize = 48 << 20;

const SOON: Duration = Duration::from_secs(90);

/// The daemons of mounts below `place`.
fn daemons(place: &std::path::Path) -> Vec<Pid> {
    let of =
        |process: &Process| fs::read_to_string(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
    let is_one = |process: &&Process| {
        let words = of(process);
        !process.is_zombie && words.starts_with("s3fs") && words.contains(&place.display().to_string())
    };
    let all = Process::all().expect("processes");
    all.iter().filter(is_one).map(|process| Pid::from_raw(process.pid.cast_signed())).collect()
}

#[test]
fn a_mount_whose_daemon_is_killed_while_every_byte_is_read_is_mounted_anew_and_the_agent_goes_on() {
    let Some(place) = place() else { return };
    let server = S3Server::start().expect("a server");
    let bucket = server.bucket();
    write_model(&bucket, WEIGHT_BYTES);
    fs::write(bucket.join("config.json"), r#"{"max_position_embeddings": 4096}"#).expect("written");
    let mut manifest = std::process::Command::new(binary("cic-agent").expect("built"));
    assert!(manifest.arg("manifest").arg(&bucket).status().expect("it runs").success());
    let source = format!(
        "s3fs://fleet?url=http://{}&use_path_request_style&retries=1&connect_timeout=3&readwrite_timeout=10",
        server.address()
    );
    let mut options = SoloOptions::standin(&place).expect("a stand-in");
    options.model = place.join("cache/tiny");
    options.sources = vec![source.clone()];
    options.env = server.keys();
    let mut solo = Solo::start(options).expect("an agent");
    let agent = solo.agent_pid();
    let is_under_way = |report: &Value| {
        let done = report["model"]["done"].as_u64()?;
        (report["phase"] == "verifying" && done > 0).then_some(done)
    };
    let done = solo.wait_for("bytes read through the mount", SOON, is_under_way).expect("it is compared");
    let first = daemons(solo.path());
    assert_eq!(first.len(), 1, "mounted once");
    kill(first[0], Signal::SIGKILL).expect("killed");
    solo.wait_serving(SOON).expect("it serves");
    println!("killed after {done} bytes; {}", solo.report().expect("a report")["reason"]);
    let log = solo.log();
    assert_eq!(solo.agent_pid(), agent);
    assert!(log.contains("mounted anew; it was dead"), "{log}");
    assert!(log.contains("Transport endpoint is not connected"), "{log}");
    let second = daemons(solo.path());
    assert!(second.len() == 1 && second != first, "{first:?}, {second:?}");
    // Nothing of it is copied.
    assert!(!place.join("cache/tiny").exists());
    kill(second[0], Signal::SIGKILL).expect("killed");
}
