//! One real agent with less than is asked for: an engine that is full, one that is gone, and an API outside.

use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cic_common::process::{Process, family};
use fleet_tests::process::{Answer, Solo, SoloOptions, binary, request_as};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

fn completion(tokens: u32) -> String {
    json!({ "model": "tiny", "prompt": "one two three", "max_tokens": tokens, "ignore_eos": true })
        .to_string()
}

fn ask(edge: &str, class: &str, wait_s: &str, tokens: u32) -> anyhow::Result<Answer> {
    let headers = [("x-cic-class", class), ("x-cic-wait", wait_s)];
    request_as(edge, "POST", "/v1/completions", &headers, Some(&completion(tokens)), SOON)
}

/// Requests that each take long, in the background.
fn hold(edge: &str, class: &'static str, count: usize) -> Vec<JoinHandle<u16>> {
    let one = |_| {
        let edge = edge.to_owned();
        std::thread::spawn(move || ask(&edge, class, "0", 400).expect("an answer").status)
    };
    (0..count).map(one).collect()
}

fn metric(solo: &Solo, name: &str) -> Option<u64> {
    let text = request_as(&solo.address("metrics").ok()?, "GET", "/metrics", &[], None, SOON).ok()?.body;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn wait_metric(solo: &mut Solo, name: &str, value: u64) {
    let began = Instant::now();
    while metric(solo, name) != Some(value) {
        assert!(began.elapsed() < SOON, "{name} is {:?}, not {value}:\n{}", metric(solo, name), solo.log());
        std::thread::sleep(Duration::from_millis(10)); // bounded wait: by SOON
    }
}

#[test]
fn a_full_engine_sheds_batch_first_and_says_when_to_come_again() {
    let place = tempfile::tempdir().expect("a directory");
    let options = SoloOptions::standin(place.path()).expect("a stand-in");
    let options = options.with("CIC_EDGE_IN_FLIGHT_MAX", "10").with_engine("CIC_STANDIN_TOKEN_MS", "10");
    let mut solo = Solo::start(options).expect("an agent");
    solo.wait_serving(SOON).expect("serving");
    let edge = solo.address("edge").expect("an edge");

    let mut held = hold(&edge, "batch", 7);
    wait_metric(&mut solo, "cic_agent_edge_engine_in_flight_requests", 7);
    assert_eq!(ask(&edge, "batch", "0", 1).expect("an answer").status, 429);
    // Behind the batch work there is room for what is asked for by people.
    assert_eq!(ask(&edge, "standard", "0", 1).expect("an answer").status, 200);
    held.extend(hold(&edge, "standard", 2));
    wait_metric(&mut solo, "cic_agent_edge_engine_in_flight_requests", 9);
    let shed = ask(&edge, "standard", "0", 1).expect("an answer");
    assert_eq!(shed.status, 429, "{}", shed.body);
    let retry_after: u64 = shed.header("retry-after").expect("a header").parse().expect("seconds");
    assert!((1..=30).contains(&retry_after), "{retry_after}");
    assert_eq!(shed.json().expect("JSON")["error"]["code"], "replicas_full");
    assert_eq!(ask(&edge, "latency_critical", "0", 1).expect("an answer").status, 200);
    // Who would wait gets the next place that is free.
    assert_eq!(ask(&edge, "batch", "60", 1).expect("an answer").status, 200);

    assert!(held.into_iter().all(|client| client.join().expect("a client") == 200));
    for (class, shed) in [("batch", 1), ("standard", 1), ("latency_critical", 0)] {
        let name = format!("cic_agent_edge_shed_requests_total{{class=\"{class}\"}}");
        assert_eq!(metric(&solo, &name), Some(shed), "{class}");
    }
    wait_metric(&mut solo, "cic_agent_edge_engine_in_flight_requests", 0);
    assert_eq!(metric(&solo, "cic_agent_edge_failures_total"), Some(0));
}

#[test]
fn an_engine_whose_own_queue_is_full_is_told_as_full_and_not_as_absent() {
    let place = tempfile::tempdir().expect("a directory");
    let mut options = SoloOptions::standin(place.path()).expect("a stand-in");
    options.args = ["--max-num-seqs", "1", "--max-num-queued-reqs", "1"].map(str::to_owned).into();
    let mut solo = Solo::start(options.with_engine("CIC_STANDIN_TOKEN_MS", "10")).expect("an agent");
    solo.wait_serving(SOON).expect("serving");
    let edge = solo.address("edge").expect("an edge");
    let held = hold(&edge, "standard", 2);
    wait_metric(&mut solo, "cic_agent_edge_engine_in_flight_requests", 2);
    let began = Instant::now();
    let shed = loop {
        let answer = ask(&edge, "standard", "0", 1).expect("an answer");
        // One of both may not have come to the engine yet.
        if answer.status != 200 || began.elapsed() > SOON {
            break answer;
        }
    };
    assert_eq!(shed.status, 429, "{}", shed.body);
    assert!(shed.header("retry-after").is_some());
    assert!(held.into_iter().all(|client| client.join().expect("a client") == 200));
}

/// A stand-in that plays the API outside.
struct Outside {
    child: Child,
    address: String,
}

impl Outside {
    fn start(place: &std::path::Path) -> Self {
        let port = cic_common::ports::lasting_port().expect("a port");
        let child = Command::new(binary("cic-standin-engine").expect("a stand-in"))
            .args(["serve", &place.join("model").display().to_string(), "--served-model-name", "large"])
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let address = format!("127.0.0.1:{port}");
        let began = Instant::now();
        while request_as(&address, "GET", "/health", &[], None, SOON).is_err() {
            assert!(began.elapsed() < SOON, "the API outside does not answer");
            std::thread::sleep(Duration::from_millis(10)); // bounded wait: by SOON
        }
        Self { child, address }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Its core would live on without it.
        let all = Process::all().unwrap_or_default();
        for process in family(&all, |one| one.pid == self.child.id()) {
            let _ = kill(Pid::from_raw(process.pid.cast_signed()), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

#[test]
fn what_no_replica_takes_is_answered_outside_counted_and_costed() {
    let place = tempfile::tempdir().expect("a directory");
    let options = SoloOptions::standin(place.path()).expect("a stand-in");
    let outside = Outside::start(place.path());
    let key = place.path().join("key");
    std::fs::write(&key, "our-key\n").expect("written");
    let options = options
        .with_engine("CIC_STANDIN_START_AFTER", "600")
        .with("CIC_SURGE_URL", format!("http://{}/v1", outside.address))
        .with("CIC_SURGE_KEY_FILE", key.display().to_string())
        .with("CIC_SURGE_MODELS", "tiny=large")
        .with("CIC_SURGE_INPUT_MICROUSD_PER_MILLION", "1000000")
        .with("CIC_SURGE_OUTPUT_MICROUSD_PER_MILLION", "2000000")
        .with("CIC_SURGE_BUDGET_USD_PER_HOUR", "0.001");
    let mut solo = Solo::start(options).expect("an agent");
    let edge = solo.wait_for("an edge", SOON, |_| Some(())).map(|()| solo.address("edge")).expect("up");
    let edge = edge.expect("an edge");
    // The leader's leave, as a table that was remembered would bring it.
    assert_eq!(ask(&edge, "standard", "3", 1).expect("an answer").status, 503, "no route allows it");
    solo.end_agent(nix::sys::signal::Signal::SIGKILL).expect("ended");
    let routes = json!({ "term": 1, "version": 1, "routes": [
        { "deployment": "solo", "model": "tiny", "replicas": [], "routing": { "surge_allowed": true } },
    ]});
    std::fs::write(solo.state().join("routes.json"), routes.to_string()).expect("written");
    solo.start_agent().expect("an agent");
    solo.wait_for("a report", SOON, |_| Some(())).expect("up");
    let edge = solo.address("edge").expect("an edge");

    let answer = ask(&edge, "standard", "30", 8).expect("an answer");
    assert_eq!((answer.status, answer.header("x-cic-node")), (200, Some("surge")), "{}", answer.body);
    let usage = answer.json().expect("JSON")["usage"].clone();
    let (input, output) = (usage["prompt_tokens"].as_u64().expect("a count"), 8);
    assert_eq!(usage["completion_tokens"], output);

    let body = json!({ "model": "tiny", "prompt": "one two three", "max_tokens": 8, "stream": true,
        "ignore_eos": true });
    let headers = [("x-cic-wait", "30")];
    let stream = request_as(&edge, "POST", "/v1/completions", &headers, Some(&body.to_string()), SOON);
    let stream = stream.expect("an answer");
    let events: Vec<&str> = stream.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let no_choice =
        |event: &&&str| serde_json::from_str::<Value>(event).is_ok_and(|event| event["choices"] == json!([]));
    assert_eq!(events.iter().find(no_choice), None, "the usage was not asked for");

    let cost = 2 * (input + 2 * output);
    for (name, value) in [
        ("requests_total", 2),
        ("failures_total", 0),
        ("unmetered_requests_total", 0),
        ("input_tokens_total", 2 * input),
        ("output_tokens_total", 2 * output),
        ("cost_microdollars_total", cost),
        ("budget_left_microdollars", 1000 - cost),
    ] {
        wait_metric(&mut solo, &format!("cic_agent_surge_{name}"), value);
    }
    // A longer answer might cost more than what is left of the hour: the budget is a hard stop.
    assert_eq!(ask(&edge, "standard", "3", 1000).expect("an answer").status, 503);
    assert!(metric(&solo, "cic_agent_surge_stops_total{reason=\"budget\"}") > Some(0));
    assert_eq!(metric(&solo, "cic_agent_surge_requests_total"), Some(2));
    assert!(solo.log().contains("surge stops"), "{}", solo.log());
    assert!(!solo.log().contains("our-key"));
}
