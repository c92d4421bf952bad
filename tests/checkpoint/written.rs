//! One agent by itself.

use std::path::Path;
use std::time::Duration;

use fleet_tests::process::{S3Server, Solo, SoloOptions, metric, request};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(40);

/// The last ten, and one that is written before the eleventh is removed.
const OBJECTS_MAX: usize = 11;

fn solo(s3: &S3Server, place: &Path) -> Solo {
    let mut options = SoloOptions::standin(place).expect("a stand-in").with("CIC_CHECKPOINT_EVERY_S", "1");
    options.env.extend(s3.environment());
    let mut solo = Solo::start(options).expect("an agent");
    solo.wait_serving(SOON).expect("it serves");
    solo
}

fn saved(metrics: &str) -> Option<f64> {
    let answer = request(metrics, "GET", "/metrics", None, SOON).ok()?;
    metric(&answer.body, "cic_agent_checkpoints_total{result=\"saved\"}")
}

#[test]
fn a_serving_node_writes_one_when_it_is_time_and_the_last_ten_are_kept() {
    let (s3, place) = (S3Server::start().expect("a server"), tempfile::tempdir().unwrap());
    let mut solo = solo(&s3, place.path());
    let metrics = solo.address("metrics").expect("its port");
    let mut most = 0;
    let count = solo
        .wait_for("twelve of them", SOON, |_| {
            most = most.max(s3.objects("solo/checkpoints").len());
            saved(&metrics).filter(|count| *count >= 12.0)
        })
        .expect("written");
    assert!((2..=OBJECTS_MAX).contains(&most), "{count} written, {most} objects at once");

    // A person sees what a successor would.
    let shown = solo.command(&["checkpoints"]).expect("runs");
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success(), "{text}");
    let first = text.lines().next().expect("a line");
    assert!(first.contains("periodic, 0 requests") && first.contains("successor takes this"), "{text}");
    assert!(first.contains("tiny of solo, model ") && !first.contains("not known"), "{text}");
    assert!(text.lines().count() <= OBJECTS_MAX, "{text}");
}

#[test]
fn a_checkpoint_names_model_and_arguments_and_holds_no_value_of_the_environment() {
    let (s3, place) = (S3Server::start().expect("a server"), tempfile::tempdir().unwrap());
    let mut options =
        SoloOptions::standin(place.path()).expect("a stand-in").with_engine("HF_TOKEN", "secret-7");
    options.args = vec!["--max-num-seqs".to_owned(), "8".to_owned()];
    options.env.extend(s3.environment());
    let mut solo = Solo::start(options).expect("an agent");
    solo.wait_serving(SOON).expect("it serves");
    let object =
        solo.wait_for("a checkpoint", SOON, |_| s3.objects("solo/checkpoints").pop()).expect("written");
    let text = std::fs::read_to_string(object).expect("text");
    let (head, body) = text.split_once('\n').expect("a first line");
    assert!(head.starts_with("cic-checkpoint 1 sha256:"), "{head}");
    let checkpoint: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(checkpoint["assignment"]["engine"]["args"], serde_json::json!(["--max-num-seqs", "8"]));
    assert_eq!(checkpoint["assignment"]["engine"]["env"]["HF_TOKEN"], "");
    assert_eq!(checkpoint["model_digest"].as_str().map(str::len), Some(64));
    assert!(checkpoint["metrics"].as_str().is_some_and(|page| page.contains("cic_agent_phase{")));
    assert!(!text.contains("secret-7"));
}

#[test]
fn an_agent_that_finds_its_engine_running_still_knows_the_models_digest() {
    let (s3, place) = (S3Server::start().expect("a server"), tempfile::tempdir().unwrap());
    let mut solo = solo(&s3, place.path());
    let digest = |object: &Path| {
        let text = std::fs::read_to_string(object).ok()?;
        let body: serde_json::Value = serde_json::from_str(text.split_once('\n')?.1).ok()?;
        Some((body["incarnation"].clone(), body["model_digest"].as_str()?.to_owned()))
    };
    let newest = |_: &_| digest(&s3.objects("solo/checkpoints").pop()?);
    let (first_run, first) = solo.wait_for("a checkpoint", SOON, newest).expect("written");
    solo.end_agent(Signal::SIGKILL).expect("killed");
    solo.start_agent().expect("started");
    let later = |report: &_| newest(report).filter(|(run, _)| *run != first_run);
    let (_, second) = solo.wait_for("one of the next run", SOON, later).expect("written");
    assert_eq!(second, first);
}
