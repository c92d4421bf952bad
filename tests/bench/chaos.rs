//! Ten minutes of replicas killed and connections reset: whether anybody who listens at an edge notices.
//!
//! Three replicas on the stand-in engine behind an edge that stays. Streams of every kind and requests that are not
//! streamed go through it; every 20 s a replica is broken in another way, and one stream in twenty has its connection to a
//! replica reset. Each stream is compared with what it would have been. At the end the counters must add up, and the
//! edge must hold no more memory and descriptors than it did in the first tenth.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fleet_tests::process::{Choir, DevFleet, Load, Options, RoughLine, Strike, Striker, asks, metric};

use crate::rig::Usage;
use crate::table::{Table, median};

const STRIKE_EVERY: Duration = Duration::from_secs(20);

/// By turns: power loss, the engine, the core of the engine, the agent, an engine that is stopped.
const STRIKES: [Strike; 5] =
    [Strike::Node, Strike::Engine, Strike::EngineCore, Strike::Agent, Strike::EngineStop];

const REPLICAS: u16 = 3;
const STREAM_CLIENTS: usize = 12;
const WHOLE_CLIENTS: usize = 3;

/// Different streams; each is heard again and again.
const ASKS: usize = 120;
const TOKENS_MAX: usize = 100;

/// One stream in so many has its connection reset. What is not streamed is shorter and meets fewer.
const RESET_ONE_IN: u64 = 20;

const SOON: Duration = Duration::from_secs(60);

/// Between two samples of the edge.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

const MIB: f64 = (1 << 20) as f64;

/// An allocator keeps some of what it got; a leak of a kibibyte a request would be several times this.
const GROWTH_MIB_MAX: f64 = 2.0;

/// Connections come and go; a leak of one a kill would be several times this.
const GROWTH_FILES_MAX: f64 = 8.0;

/// Failures shown in full.
const SHOWN_MAX: usize = 8;

pub(crate) fn run(minutes: u32) -> anyhow::Result<Table> {
    let span = Duration::from_secs(u64::from(minutes) * 60);
    ensure!(span >= STRIKE_EVERY, "--minutes must be at least 1");
    let env = [("CIC_BRAKE_TERMINATIONS_MAX", "100000"), ("CIC_BRAKE_LAUNCHES_MAX", "100000")];
    let mut fleet = DevFleet::start(&Options {
        replicas: REPLICAS,
        engine_args: vec!["--standin-token-ms=20".to_owned()],
        env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Options::default()
    })?;
    fleet.wait_serving(REPLICAS.into(), SOON)?;
    let line = RoughLine::lay(&fleet.path(), REPLICAS.into())?;
    let asks = asks("tiny", ASKS, TOKENS_MAX);
    let mut reference = Choir::start(&fleet.edge, &asks, ASKS / 2, ASKS).finish();
    reference.sort_by_key(|(number, _)| *number);
    let reference: Vec<_> = reference.into_iter().map(|(_, heard)| heard).collect();
    ensure!(reference.iter().all(|heard| heard.is_whole()), "the undisturbed run is not whole");

    let stream_bytes = line.passed.bytes.load(Ordering::Relaxed) / ASKS as u64;
    ensure!(stream_bytes > 0, "the undisturbed streams did not pass the line that is to be made rough");
    line.roughen(RESET_ONE_IN * stream_bytes);
    let choir = Choir::start_for_long(&fleet.edge, &asks, STREAM_CLIENTS, reference);
    let load = Load::start(&fleet.edge, "tiny", WHOLE_CLIENTS);
    let mut striker = Striker::new(&STRIKES, 2, Duration::from_secs(2), SOON);
    let samples = disturb(&fleet, &mut striker, &choir, span)?;

    let (heard, shown) = choir.judged();
    let load = load.stop();
    let wrong = shown.iter().chain(&load.failed);
    wrong.take(SHOWN_MAX).for_each(|failure| eprintln!("  {failure}"));
    let mut table = Table::default();
    let streams = heard.len() as f64;
    let whole = load.good as f64 + load.failed.len() as f64;
    let cuts: usize = striker.struck.iter().map(|(_, _, cut)| cut).sum();
    let resets = line.passed.resets.load(Ordering::Relaxed) as f64;
    let strikes_due = (span.as_secs() / STRIKE_EVERY.as_secs()) as f64;
    let stall = heard.iter().map(|(_, heard)| heard.stall).max().unwrap_or_default();
    let failed_streams = heard.iter().filter(|(_, heard)| heard.broken.is_some() || !heard.is_done).count();
    table.row("streams", streams, "", None);
    table.row("requests not streamed", whole, "", None);
    table.row("replicas broken", striker.struck.len() as f64, "", None);
    table.row("of those due, not broken", strikes_due - striker.struck.len() as f64, "", Some(1.0));
    table.row("requests with a broken replica", cuts as f64, "", None);
    table.row("connections reset", resets, "", None);
    table.row("of all streams and requests", 100.0 * resets / (streams + whole), "%", None);
    table.row("bytes of a stream on the wire", stream_bytes as f64, "", None);
    table.row("streams that did not end in order", failed_streams as f64, "", Some(0.0));
    table.row("streams not as the undisturbed run", shown.len() as f64, "", Some(0.0));
    table.row("failed requests not streamed", load.failed.len() as f64, "", Some(0.0));
    table.row("longest stall within a stream", stall.as_secs_f64(), "s", Some(1.0));
    counters(&fleet, ASKS as f64 + streams + whole, &mut table)?;
    growth(&samples, &mut table);
    drop(line);
    fleet.stop()?;
    Ok(table)
}

/// Breaks a replica every 20 s until `span` is over, and samples the edge every second.
fn disturb(
    fleet: &DevFleet,
    striker: &mut Striker,
    choir: &Choir,
    span: Duration,
) -> anyhow::Result<Vec<Usage>> {
    let (began, gateway) = (Instant::now(), fleet.gateway_pid()?);
    let mut samples = Vec::new();
    let mut turn = 0;
    while began.elapsed() < span {
        // Nobody waits for the strike of the last moment.
        if began.elapsed() >= STRIKE_EVERY * turn && span - began.elapsed() > STRIKE_EVERY / 2 {
            turn += 1;
            striker.strike(fleet, None, &|| began.elapsed() > span)?;
            let (node, strike, cut) = striker.struck.last().context("just struck")?;
            eprintln!(
                "{:>4.0} s: {strike:?} of {node}, {cut} requests cut; {} streams ended, {} not as they should",
                began.elapsed().as_secs_f64(),
                choir.ended(),
                choir.wrong().len()
            );
        }
        samples.push(Usage::of(gateway).context("the edge that stays")?);
        std::thread::sleep(SAMPLE_EVERY); // bounded wait: one pause
    }
    Ok(samples)
}

/// Nothing is in flight anywhere any more, and the edge has counted what was sent.
fn counters(fleet: &DevFleet, sent: f64, table: &mut Table) -> anyhow::Result<()> {
    const IN_FLIGHT: &str = "cic_agent_edge_in_flight_requests";
    let in_flight = || -> anyhow::Result<f64> {
        let mut sum = fleet.gateway_metric(IN_FLIGHT)?.context(IN_FLIGHT)?;
        for node in fleet.serving_by_their_word() {
            sum += metric(&fleet.metrics_page(&node)?, IN_FLIGHT).context(IN_FLIGHT)?;
        }
        Ok(sum)
    };
    let began = Instant::now();
    let mut left = in_flight()?;
    while left > 0.0 && began.elapsed() < SOON / 4 {
        std::thread::sleep(SAMPLE_EVERY); // bounded wait: 15 s
        left = in_flight()?;
    }
    let counted = |name: &str| fleet.gateway_metric(name).ok().flatten().unwrap_or(f64::NAN);
    let requests = counted("cic_agent_edge_requests_total");
    table.row("continued by the edge", counted("cic_agent_edge_continuations_total"), "", None);
    table.row("retried by the edge", counted("cic_agent_edge_retries_total"), "", None);
    table.row("failures counted by the edge", counted("cic_agent_edge_failures_total"), "", Some(0.0));
    table.row("in flight at the end, all agents", left, "", Some(0.0));
    table.row("requests sent and not counted, or the reverse", (sent - requests).abs(), "", Some(0.0));
    Ok(())
}

/// The first tenth against the last: the middle of each.
fn growth(samples: &[Usage], table: &mut Table) {
    let tenth = (samples.len() / 10).max(1);
    let middle = |samples: &[Usage], of: fn(&Usage) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        median(&values)
    };
    let (first, last) = (&samples[..tenth], &samples[samples.len() - tenth..]);
    let rss = |usage: &Usage| usage.rss_bytes as f64 / MIB;
    let files = |usage: &Usage| usage.file_count as f64;
    table.row("RSS of the edge, first tenth", middle(first, rss), "MiB", None);
    table.row("RSS of the edge, last tenth", middle(last, rss), "MiB", None);
    table.row("growth of RSS", middle(last, rss) - middle(first, rss), "MiB", Some(GROWTH_MIB_MAX));
    table.row("descriptors, first tenth", middle(first, files), "", None);
    table.row("descriptors, last tenth", middle(last, files), "", None);
    table.row(
        "growth of descriptors",
        middle(last, files) - middle(first, files),
        "",
        Some(GROWTH_FILES_MAX),
    );
}
