//! Stores that are not there.

use std::time::Duration;

use fleet_tests::process::{DevFleet, Load, Options, S3Server, metric};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// The newest text of an event of this kind on `node` that `fits`.
fn said(fleet: &DevFleet, node: &str, kind: &str, fits: impl Fn(&str) -> bool) -> Option<String> {
    let events = fleet.events().ok()?;
    let of_kind = |event: &&Value| event["kind"] == kind && event["node"] == *node;
    let mut texts = events.iter().rev().filter(of_kind).filter_map(|event| event["text"].as_str());
    texts.find(|text| fits(text)).map(str::to_owned)
}

#[test]
fn a_store_that_is_down_is_told_once_and_costs_no_request_and_the_second_one_has_all() {
    let (mut first, mut second) = (S3Server::start().expect("one"), S3Server::start().expect("another"));
    let mut options = Options { env: first.keys(), ..Options::default() };
    options.more =
        ["--checkpoints", &first.url(), "--checkpoints-second", &second.url(), "--checkpoint-every", "1"]
            .map(str::to_owned)
            .into();
    let mut fleet = DevFleet::start(&options).expect("a fleet");
    let node = fleet.wait_serving(2, SOON).expect("two serve").remove(0);
    let folder = format!("{node}/checkpoints");
    fleet
        .wait_for("both stores to have one", SOON, |_| {
            (!first.objects(&folder).is_empty() && !second.objects(&folder).is_empty()).then_some(())
        })
        .expect("written");

    let load = Load::start(&fleet.edge, "tiny", 2);
    first.stop().expect("stopped");
    let told = fleet
        .wait_for("its word", SOON, |fleet| {
            said(fleet, &node, "checkpoint-failed", |text| text.contains("not in every store"))
        })
        .expect("told");
    println!("one store down: {told}");
    let before = second.objects(&folder).pop();
    fleet
        .wait_for("a newer one", SOON, |_| (second.objects(&folder).pop() > before).then_some(()))
        .expect("written");

    second.stop().expect("stopped");
    fleet
        .wait_for("one that is in no store", SOON, |fleet| {
            let page = fleet.metrics_page(&node).ok()?;
            metric(&page, "cic_agent_checkpoints_total{result=\"failed\"}").filter(|count| *count > 0.0)
        })
        .expect("counted");
    // Nothing new is told while it goes on failing, in however many stores.
    first.start_again().expect("started");
    second.start_again().expect("started");
    let told = fleet
        .wait_for("that all is well", SOON, |fleet| said(fleet, &node, "checkpoint", |_| true))
        .expect("told");
    println!("both are back: {told}");
    let events = fleet.events().expect("events");
    let failures =
        events.iter().filter(|event| event["kind"] == "checkpoint-failed" && event["node"] == *node);
    assert_eq!(failures.count(), 1, "{events:#?}");
    let seen = load.stop();
    assert!(seen.good > 0 && seen.failed.is_empty(), "{seen:?}");
    assert_eq!(fleet.view().expect("a view").serving().len(), 2);
    fleet.stop().expect("nothing is left");
}
