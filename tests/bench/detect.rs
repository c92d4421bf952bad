//! From power loss of a node to what the fleet does about it, on real processes.
//!
//! A fleet of two replicas on the stand-in engine runs under `cic dev`. Each run kills one serving node with
//! `cic fault NODE kill` and reads from the event log when it was routed out, when its replacement's launch was
//! recorded, and when a node that was not there before was routed in. Time zero is taken before the command is even
//! started, so its own start is in the numbers.

use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context as _;
use cic_common::time::unix_ms;
use fleet_tests::process::{DevFleet, Fault, Options};
use serde_json::Value;

use crate::table::{Table, median};

/// Runs unless told otherwise.
pub(crate) const RUNS: NonZeroUsize = NonZeroUsize::new(20).expect("20 is not zero");

const WITHIN: Duration = Duration::from_secs(60);

/// Milliseconds from the kill.
#[derive(Debug, Default)]
struct Spans {
    route_out: Vec<f64>,
    launch: Vec<f64>,
    serving: Vec<f64>,
}

pub(crate) fn run(runs: NonZeroUsize) -> anyhow::Result<Table> {
    // The brake would stop the benchmark half-way: it replaces more nodes in minutes than a fleet loses in weeks.
    let brake = [("CIC_BRAKE_LAUNCHES_MAX", "1000"), ("CIC_BRAKE_TERMINATIONS_MAX", "1000")];
    let env = brake.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let mut fleet = DevFleet::start(&Options { env, ..Options::default() })?;
    let mut spans = Spans::default();
    for round in 1..=runs.get() {
        let serving = fleet.wait_serving(2, WITHIN)?;
        let victim = serving.first().context("a serving node")?.clone();
        let known = fleet.view()?.names();
        let zero = unix_ms();
        fleet.fault(&victim, Fault::Kill)?;
        let out = after(&mut fleet, zero, |event| is(event, "route-out", |node| node == victim))?;
        let is_new = |node: &str| !known.iter().any(|name| name == node);
        let launch = after(&mut fleet, zero, |event| is(event, "launch", is_new))?;
        let back = after(&mut fleet, zero, |event| is(event, "route-in", is_new))?;
        eprintln!("run {round}: route-out {out} ms, launch {launch} ms, serving {back} ms");
        #[allow(clippy::cast_precision_loss)]
        for (list, span) in
            [(&mut spans.route_out, out), (&mut spans.launch, launch), (&mut spans.serving, back)]
        {
            list.push(span as f64 / 1000.0);
        }
    }
    fleet.stop()?;
    let mut table = Table::default();
    let lists = [
        ("kill to route-out", spans.route_out, Some(1.0)),
        ("kill to launch recorded", spans.launch, Some(6.0)),
        ("kill to replacement routed (stand-in engine)", spans.serving, None),
    ];
    for (name, mut list, target) in lists {
        list.sort_by(f64::total_cmp);
        let median = median(&list);
        let max = list.last().copied().unwrap_or(f64::NAN);
        table.row(&format!("{name}, median of {runs}"), median, "s", target);
        table.row(&format!("{name}, max of {runs}"), max, "s", target);
    }
    Ok(table)
}

/// Milliseconds from `zero` to the first event after it that `wanted` accepts.
pub(crate) fn after(fleet: &mut DevFleet, zero: u64, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<u64> {
    fleet.wait_for("the event", WITHIN, |fleet| {
        let events = fleet.events().ok()?;
        let moments =
            events.iter().filter(|event| wanted(event)).filter_map(|event| event["at_unix_ms"].as_u64());
        moments.filter(|at| *at >= zero).min().map(|at| at - zero)
    })
}

pub(crate) fn is(event: &Value, kind: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
    event["kind"] == kind && event["node"].as_str().is_some_and(is_wanted)
}
