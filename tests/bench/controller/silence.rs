//! Two zones fall silent at once: how soon each of their nodes is believed silent, what that costs, and what the brake says.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cic_common::time::unix_ms;
use fleet_tests::process::request;
use serde_json::{Value, json};

use super::run::{Fleet, PAGE_LOOK, queues, wait_until};
use super::site::zone;
use crate::table::{Table, percentile};

/// From the silence on: three missed heartbeats, urgent polls of all, and room for a machine with two cores.
const SILENT_WITHIN: Duration = Duration::from_secs(60);

/// Beyond the partition grace of the configuration, so that each has been found lost and was to be terminated.
const HELD_FOR: Duration = Duration::from_secs(10);

const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Zones that the taken nodes fill.
const ZONES_TAKEN: usize = 2;

/// Entries of the event log in one answer.
const EVENTS_MAX: usize = 1000;

pub(super) fn measure(fleet: &Fleet, table: &mut Table) -> anyhow::Result<()> {
    let (api, size) = (fleet.controller.api.as_str(), fleet.size);
    let count = size / super::run::TAKEN_SHARE;
    let newest = events(api, None)?.last().and_then(|event| event["id"].as_u64()).unwrap_or(0);
    let before = fleet.page()?;
    let (began, began_ms) = (Instant::now(), unix_ms());
    fleet.taken.stop_silently()?;
    #[allow(clippy::cast_precision_loss)]
    let is_silent = || Ok(fleet.page()?.value("cic_nodes{belief=\"silent\"}") >= count as f64);
    wait_until("all that were taken to be believed silent", SILENT_WITHIN, PAGE_LOOK, is_silent)?;
    let all_after = began.elapsed();
    let page = fleet.page()?;
    let step = page.quantile_ms(&before, "cic_step_seconds", 0.99)?;
    let ingest = page.quantile_ms(&before, "cic_ingest_seconds", 0.99)?;

    // Nobody is wanted in the silent zones any more: nothing but the brake keeps their nodes from being terminated.
    for number in 0..ZONES_TAKEN {
        want_nobody(fleet, number)?;
    }
    std::thread::sleep(HELD_FOR); // bounded wait: HELD_FOR
    let page = fleet.page()?;

    let mut spans = silences(api, newest, began_ms)?;
    ensure!(spans.len() >= count, "the log tells of {} silent nodes of {count}", spans.len());
    let mut row = |name: &str, value: f64, unit, target| {
        table.row(&format!("{size} nodes, {count} silent at once: {name}"), value, unit, target);
    };
    for percent in [50.0, 99.0, 100.0] {
        row(&format!("believed silent after, p{percent}"), percentile(&mut spans, percent), "s", None);
    }
    row("all silent in the view after", all_after.as_secs_f64(), "s", None);
    row("one step of the core meanwhile, p99", step, "ms", None);
    row("arrival of a heartbeat to its step meanwhile, p99", ingest, "ms", None);
    let silent = page.value("cic_nodes{belief=\"silent\"}") + page.value("cic_nodes{belief=\"gone\"}");
    #[allow(clippy::cast_precision_loss)]
    row("others believed silent", silent - count as f64, "", Some(0.0));
    row(
        "removals and launches held by the brake or for want of a replacement",
        page.value("cic_holds"),
        "",
        None,
    );
    row("terminations", terminations(api)?, "", Some(0.0));
    let dropped = page.value("cic_store_events_dropped_total");
    row("entries of the event log given up since the start", dropped, "", None);
    row("writes refused", page.value("cic_store_writes_refused_total"), "", Some(0.0));
    queues(&format!("{size} nodes, {count} silent at once"), &page, table);
    Ok(())
}

fn want_nobody(fleet: &Fleet, zone_number: usize) -> anyhow::Result<()> {
    let known = fleet.site.deployment(zone_number)?;
    let body = json!({
        "model": known.model, "engine": known.engine, "replicas": 0, "replicas_min": 0,
        "provider": known.provider, "zone": known.zone,
    });
    let path = format!("/v1/deployments/{}", zone(zone_number));
    let answer = request(&fleet.controller.api, "PUT", &path, Some(&body.to_string()), ANSWER_WITHIN)?;
    ensure!(answer.status == 200, "{path} answers {}: {}", answer.status, answer.body);
    Ok(())
}

/// A page of the event log, oldest first.
fn events(api: &str, after: Option<u64>) -> anyhow::Result<Vec<Value>> {
    let after = after.map(|id| format!("&after={id}")).unwrap_or_default();
    let answer =
        request(api, "GET", &format!("/v1/events?limit={EVENTS_MAX}{after}"), None, ANSWER_WITHIN)?.json()?;
    Ok(answer["events"].as_array().context("no events")?.clone())
}

/// Seconds from the silence to the first moment at which each node was believed silent.
fn silences(api: &str, mut after: u64, began_ms: u64) -> anyhow::Result<Vec<f64>> {
    let mut first = std::collections::BTreeMap::new();
    loop {
        let page = events(api, Some(after))?;
        for event in &page {
            let is_silence = event["kind"] == "belief"
                && event["text"].as_str().is_some_and(|text| text.contains("-> silent"));
            if let (true, Some(node), Some(at)) =
                (is_silence, event["node"].as_str(), event["at_unix_ms"].as_u64())
            {
                first.entry(node.to_owned()).or_insert(at.saturating_sub(began_ms));
            }
        }
        match page.last().and_then(|event| event["id"].as_u64()) {
            Some(last) if page.len() == EVENTS_MAX => after = last,
            Some(_) | None => break,
        }
    }
    #[allow(clippy::cast_precision_loss)]
    Ok(first.into_values().map(|ms| ms as f64 / 1000.0).collect())
}

/// Of the newest thousand operations, those that give a VM back.
fn terminations(api: &str) -> anyhow::Result<f64> {
    let answer = request(api, "GET", "/v1/operations?limit=1000", None, ANSWER_WITHIN)?.json()?;
    let operations = answer["operations"].as_array().context("no operations")?;
    #[allow(clippy::cast_precision_loss)]
    Ok(operations.iter().filter(|operation| operation["kind"].to_string().contains("terminate")).count()
        as f64)
}
