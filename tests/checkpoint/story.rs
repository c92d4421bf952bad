//! A request that its node did not live to answer.

use std::time::Duration;

use fleet_tests::process::{Answer, DevFleet, Options, S3Server, metric, request_as};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// From the notice to the end of the machine; the request takes longer.
const NOTICE: Duration = Duration::from_secs(10);

/// At 10 ms a token of the stand-in.
const TOKENS: u32 = 1800;

fn ask(edge: &str, key: &str, prompt: &str, tokens: u32) -> anyhow::Result<Answer> {
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": true});
    let headers = [("idempotency-key", key)];
    request_as(edge, "POST", "/v1/completions", &headers, Some(&body.to_string()), SOON)
}

fn text(answer: &Answer) -> String {
    let body: Value = answer.json().expect("JSON");
    body["choices"][0]["text"].as_str().expect("text").to_owned()
}

#[test]
fn a_request_that_was_lost_with_its_node_is_answered_by_its_successor_when_it_comes_again() {
    let s3 = S3Server::start().expect("a server");
    let more = ["--checkpoints", &s3.url()].map(str::to_owned).into();
    let engine_args = ["--standin-token-ms", "10"].map(str::to_owned).into();
    let options = Options { env: s3.keys(), more, engine_args, ..Options::default() };
    let mut fleet = DevFleet::start(&options).expect("a fleet");
    let node = fleet.wait_serving(2, SOON).expect("two serve").remove(0);
    let edge = fleet.edge_of(&node).expect("its edge");
    let client = std::thread::spawn(move || ask(&edge, "order-7", "once upon", TOKENS));
    fleet
        .wait_for("the request at the node", SOON, |fleet| {
            let page = fleet.metrics_page(&node).ok()?;
            metric(&page, "cic_agent_edge_in_flight_requests").filter(|count| *count > 0.0)
        })
        .expect("under way");
    fleet.give_notice(&node, "aws", NOTICE).expect("given");
    let broken = client.join().expect("joined");
    assert!(broken.is_err(), "the machine was to go first: {broken:?}");

    fleet.wait_for("its answer in the store", SOON, |_| s3.objects("answers").pop()).expect("kept");
    let events = fleet.events().expect("events");
    for event in events.iter().filter(|event| {
        ["notice", "checkpoint", "restored", "farewell"].contains(&event["kind"].as_str().unwrap_or_default())
    }) {
        println!("{} {}: {}", event["node"], event["kind"], event["text"]);
    }
    let again = ask(&fleet.edge, "order-7", "once upon", TOKENS).expect("an answer");
    assert_eq!(again.status, 200, "{again:?}");
    assert!(again.header("x-cic-restored").is_some(), "{}", again.head);
    let restorer = again.header("x-cic-node").expect("a node").to_owned();
    assert_ne!(restorer, node);

    // Another request under the same name, and the same without it, are requests like any other.
    let other = ask(&fleet.edge, "order-7", "once upon", 8).expect("an answer");
    assert_eq!((other.status, other.header("x-cic-restored")), (200, None));
    let undisturbed = ask(&fleet.edge, "order-8", "once upon", TOKENS).expect("an answer");
    assert_eq!(undisturbed.header("x-cic-restored"), None);
    assert_eq!(text(&undisturbed), text(&again), "the answer is the one that an undisturbed run gives");
    fleet.stop().expect("nothing is left");
}
