//! Whole fleets: a notice of each cloud, from its first word to the end of the node, under load.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cic_common::time::unix_ms;
use fleet_tests::process::{Choir, DevFleet, Fault, Load, ONE_THREAD, Options, SoloOptions, Streams, asks};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Two vLLM that start beside each other on two cores.
const REAL_SOON: Duration = Duration::from_secs(400);

/// Events of a node that make its story.
const OF_THE_NODE: [&str; 8] =
    ["notice", "replace", "phase", "route-out", "engine-exit", "farewell", "terminate", "gone"];

/// And of the one in its place.
const OF_THE_NEXT: [&str; 3] = ["launch", "phase", "route-in"];

fn fleet(options: &Options, soon: Duration) -> (DevFleet, Vec<String>) {
    let mut fleet = DevFleet::start(options).expect("a fleet");
    let serving = fleet.wait_serving(2, soon).expect("two replicas serve");
    (fleet, serving)
}

/// The first moment of an event of this kind on `node`, if there was one.
fn moment(events: &[Value], kind: &str, node: &str) -> Option<u64> {
    let is_it = |event: &&Value| event["kind"] == kind && event["node"] == *node;
    events.iter().find(is_it)?["at_unix_ms"].as_u64()
}

/// A notice and what came of it.
struct Story {
    given_at: u64,
    node: String,
    replacement: String,
    events: Vec<Value>,
}

impl Story {
    /// Gives `serving[0]` notice, and waits until it has said farewell and another serves in its place.
    fn told(fleet: &mut DevFleet, serving: &[String], cloud: &str, within: Duration, soon: Duration) -> Self {
        let node = serving[0].clone();
        let given_at = unix_ms();
        fleet.give_notice(&node, cloud, within).expect("given");
        let replacement = fleet
            .wait_for("another in its place", soon, |fleet| {
                let serving_now = fleet.view().ok()?.serving();
                let next = serving_now.iter().find(|name| !serving.contains(name)).cloned();
                next.filter(|_| !serving_now.contains(&node))
            })
            .expect("replaced");
        let events = fleet
            .wait_for("its farewell and the other's route-in", soon, |fleet| {
                let events = fleet.events().ok()?;
                moment(&events, "farewell", &node)?;
                moment(&events, "route-in", &replacement).map(|_| events)
            })
            .expect("both are in the log");
        Self { given_at, node, replacement, events }
    }

    /// Milliseconds from the notice to the first event of a kind on the node, or on the one in its place.
    fn after(&self, kind: &str, node: &str) -> Duration {
        let at = moment(&self.events, kind, node).unwrap_or_else(|| panic!("no {kind} of {node}"));
        Duration::from_millis(at.saturating_sub(self.given_at))
    }

    fn print(&self, title: &str) {
        println!("{title}");
        for event in &self.events {
            let (kind, node) = (event["kind"].as_str().unwrap_or_default(), event["node"].as_str());
            let who = match node {
                Some(node) if node == self.node && OF_THE_NODE.contains(&kind) => "node",
                Some(node) if node == self.replacement && OF_THE_NEXT.contains(&kind) => "replacement",
                Some(_) | None => continue,
            };
            let at = event["at_unix_ms"].as_u64().unwrap_or(0);
            let Some(after_ms) = at.checked_sub(self.given_at) else { continue };
            let text = event["text"].as_str().unwrap_or_default();
            println!("  {:>7.2} s  {who:<11} {kind:<12} {text}", after_ms as f64 / 1000.0);
        }
    }
}

/// A node given notice by the metadata service of `cloud`: replaced before it is taken, and no request fails.
fn replaced_in_time(cloud: &'static str, within: Duration) {
    let (mut fleet, serving) = fleet(&Options { cloud, ..Options::default() }, SOON);
    let load = Load::start(&fleet.edge, "tiny", 2);
    let story = Story::told(&mut fleet, &serving, cloud, within, SOON);
    let seen = load.stop();
    story.print(&format!(
        "{cloud}, {} s, {} requests, {} failed",
        within.as_secs(),
        seen.good,
        seen.failed.len()
    ));
    assert!(story.after("farewell", &story.node) < within);
    assert!(story.after("route-in", &story.replacement) < within);
    assert!(seen.good > 0 && seen.failed.is_empty(), "{cloud}: {seen:?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_node_of_aws_is_replaced_before_it_is_taken_and_no_request_fails() {
    replaced_in_time("aws", Duration::from_secs(120));
}

#[test]
fn a_node_of_google_cloud_is_replaced_before_it_is_taken_and_no_request_fails() {
    replaced_in_time("gcp", Duration::from_secs(30));
}

#[test]
fn a_node_of_azure_is_replaced_before_it_is_taken_and_no_request_fails() {
    replaced_in_time("azure", Duration::from_secs(30));
}

#[test]
fn a_container_given_sigterm_tells_it_first_and_is_done_before_sigkill() {
    let (mut fleet, serving) = fleet(&Options { cloud: "runpod", ..Options::default() }, SOON);
    let load = Load::start(&fleet.edge, "tiny", 2);
    let agent = fleet.agent_pid(&serving[0]).expect("an agent");
    let given = Instant::now();
    let watch = std::thread::spawn(move || {
        let process = format!("/proc/{agent}");
        while Path::new(&process).exists() && given.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(5)); // bounded wait: SOON
        }
        given.elapsed()
    });
    let story = Story::told(&mut fleet, &serving, "runpod", Duration::from_secs(5), SOON);
    let done = watch.join().expect("watched");
    let seen = load.stop();
    story.print(&format!("runpod, agent gone after {:.2} s, {} requests", done.as_secs_f64(), seen.good));
    assert!(done < Duration::from_millis(4_500), "{done:?}");
    assert!(story.after("notice", &story.node) <= story.after("farewell", &story.node));
    assert!(seen.good > 0 && seen.failed.is_empty(), "{seen:?}");
    fleet.stop().expect("nothing is left");
}

#[test]
fn a_node_whose_notice_is_taken_back_serves_again_and_no_request_fails() {
    // Streams of 20 s, so that it still drains when the notice is taken back, and engines that start slowly, so that nobody
    // serves in its place yet.
    let engine_args = ["--standin-token-ms=100", "--standin-start-after=8"].map(str::to_owned).to_vec();
    let (mut fleet, serving) = fleet(&Options { engine_args, ..Options::default() }, SOON);
    let streams = Streams::start(&fleet.edge, "tiny", 6, 200);
    let node = serving[0].clone();
    fleet
        .wait_for("a stream on it", SOON, |fleet| (fleet.in_flight_of(&node) > 0).then_some(()))
        .expect("asked");
    fleet.give_notice(&node, "aws", Duration::from_secs(120)).expect("given");
    let told = |what: &'static str, is_it: &dyn Fn(&Value) -> bool, fleet: &mut DevFleet| {
        let found = fleet.wait_for(what, SOON, |fleet| {
            let events = fleet.events().ok()?;
            let is_it = |event: &&Value| event["node"] == *node && is_it(event);
            events.iter().rfind(is_it)?["at_unix_ms"].as_u64()
        });
        found.unwrap_or_else(|error| panic!("{error:#}"))
    };
    told("notice", &|event| event["kind"] == "notice", &mut fleet);
    fleet.fault(&node, Fault::Lift).expect("lifted");
    let lifted_at = told("notice-lifted", &|event| event["kind"] == "notice-lifted", &mut fleet);
    let is_serving = |event: &Value| {
        let is_after = event["at_unix_ms"].as_u64().is_some_and(|at| at >= lifted_at);
        let text = event["text"].as_str().unwrap_or_default();
        is_after && event["kind"] == "phase" && text.contains("-> serving")
    };
    told("it serves again", &is_serving, &mut fleet);
    let seen = streams.stop();
    assert!(seen.refused.is_empty() && seen.broken.is_empty() && seen.whole > 0, "{seen:?}");
    fleet.stop().expect("nothing is left");
}

/// Says that something is over when it is dropped, by a panic too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The same on two real vLLM, under streams that are compared with undisturbed ones and short requests beside them. Both come
/// in waves: an engine that is never idle leaves nothing of two cores to one that starts.
fn real_story(within: Duration) {
    const STREAMS: usize = 48;
    const CLIENTS: usize = 8;
    const TOKENS_MAX: usize = 320;
    const WAVE: Duration = Duration::from_secs(1);
    const LULL: Duration = Duration::from_secs(5);
    if SoloOptions::real().is_none() {
        return;
    }
    let env = ONE_THREAD.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let (mut fleet, serving) = fleet(&Options { engine: "vllm", env, ..Options::default() }, REAL_SOON);
    let asks = asks("tiny", STREAMS, TOKENS_MAX);
    let mut reference = Choir::start(&fleet.edge, &asks, CLIENTS, asks.len()).finish();
    reference.sort_by_key(|(number, _)| *number);
    let reference = reference.into_iter().map(|(_, heard)| heard).collect();
    let choir = Choir::start_for_long(&fleet.edge, &asks, CLIENTS, reference);
    let load = Load::paced(&fleet.edge, "tiny", 1, Duration::from_millis(500));
    let is_over = AtomicBool::new(false);
    let story = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for (rests, span) in [(false, WAVE), (true, LULL)] {
                    choir.rest(rests);
                    std::thread::sleep(span); // bounded wait: the waves are the load
                }
            }
            choir.rest(false);
        });
        let _ends = Over(&is_over);
        Story::told(&mut fleet, &serving, "aws", within, REAL_SOON)
    });
    let seen = load.stop();
    let (heard, wrong) = choir.judged();
    let stall = heard.iter().map(|(_, heard)| heard.stall).max().unwrap_or_default();
    story.print(&format!(
        "real vLLM, {} s: {} streams, {} not as the undisturbed run, longest stall {:.2} s; {} requests, {} failed",
        within.as_secs(),
        heard.len(),
        wrong.len(),
        stall.as_secs_f64(),
        seen.good,
        seen.failed.len()
    ));
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen.good > 0 && seen.failed.is_empty(), "{seen:?}");
    assert!(story.after("farewell", &story.node) < within);
    if within >= Duration::from_secs(120) {
        assert!(
            story.after("route-in", &story.replacement) < within,
            "the replacement serves before the deadline"
        );
    }
    fleet.stop().expect("nothing is left");
}

#[test]
#[ignore = "three minutes: a vLLM starts beside another that is under load"]
fn thirty_seconds_of_notice_on_the_real_engine_fail_no_request() {
    real_story(Duration::from_secs(30));
}

#[test]
#[ignore = "three minutes: a vLLM starts beside another that is under load"]
fn two_minutes_of_notice_on_the_real_engine_fail_no_request_and_the_replacement_serves_before_the_deadline() {
    real_story(Duration::from_secs(120));
}
