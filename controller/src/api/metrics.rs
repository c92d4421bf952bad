//! `/metrics` in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::server::Api;
use crate::core::{Belief, View};
use crate::driver::StepCounts;
use crate::links::Links;
use crate::store::QueueCounts;

/// Version 0.0.4 of the exposition format, which every scraper reads.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

const BELIEFS: [Belief; 6] =
    [Belief::Unknown, Belief::Alive, Belief::SuspectPoll, Belief::SuspectPush, Belief::Silent, Belief::Gone];

/// `GET /metrics`
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let mut page = Page::default();
    fleet(&mut page, &api.published().view);
    store(&mut page, &api.queue.counts());
    steps(&mut page, &api.driver.counts);
    if let Some(links) = &api.links {
        nodes(&mut page, links);
    }
    ([(CONTENT_TYPE, TEXT_FORMAT)], page.text)
}

fn fleet(page: &mut Page, view: &View) {
    page.head("cic_nodes", "gauge", "nodes by belief");
    for belief in BELIEFS {
        let count = view.nodes.iter().filter(|node| node.belief == belief).count();
        page.row("cic_nodes", &[("belief", belief.as_str())], count);
    }
    page.head("cic_deployment_replicas", "gauge", "replicas of a deployment by state");
    for known in &view.deployments {
        let states = [
            ("wanted", known.deployment.replicas),
            ("serving", known.serving),
            ("stalled", known.stalled),
            ("coming", known.coming),
            ("leaving", known.leaving),
        ];
        for (state, count) in states {
            let labels = [("deployment", known.deployment.name.as_str()), ("state", state)];
            page.row("cic_deployment_replicas", &labels, count);
        }
    }
    let mut open: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for operation in &view.operations {
        *open.entry((operation.kind.as_str(), operation.state.as_str())).or_default() += 1;
    }
    page.head("cic_operations_open", "gauge", "open operations by kind and state");
    for ((kind, state), count) in open {
        page.row("cic_operations_open", &[("kind", kind), ("state", state)], count);
    }
    page.one("cic_term", "term of this controller", view.term);
    page.one("cic_settled", "1 once the settle time after the start has passed", u8::from(view.is_settled));
    page.one("cic_holds", "reasons for which irreversible acts are held", view.holds.len());
}

fn store(page: &mut Page, counts: &QueueCounts) {
    page.one("cic_store_writes_waiting", "writes not stored yet", counts.writes_waiting);
    page.one("cic_store_events_waiting", "event log entries not stored yet", counts.events_waiting);
    page.one("cic_store_events_dropped_total", "event log entries given up", counts.events_dropped);
    page.one("cic_store_writes_refused_total", "writes refused by a full queue", counts.writes_refused);
    page.one("cic_store_failures_in_row", "failed attempts since the last good one", counts.failures_in_row);
}

fn nodes(page: &mut Page, links: &Links) {
    page.one("cic_ingest_connected", "agents with a control stream", links.ingest.connected_count());
    page.head("cic_ingest_refused_total", "counter", "what the agents' port did not let in, by kind");
    for (kind, count) in links.ingest.refusals().counts() {
        page.row("cic_ingest_refused_total", &[("kind", kind.as_str())], count);
    }
    let (polls, read) = (links.poller.counts(), |count: &AtomicU64| count.load(Ordering::Relaxed));
    page.one("cic_polls_routine_total", "routine polls", read(&polls.routine));
    page.one("cic_polls_urgent_total", "urgent polls", read(&polls.urgent));
    page.one("cic_polls_failed_total", "polls without a report", read(&polls.failed));
    page.one(
        "cic_poll_channels_lost_total",
        "warm connections closed by the node",
        read(&polls.channels_lost),
    );
}

fn steps(page: &mut Page, counts: &StepCounts) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    #[allow(clippy::cast_precision_loss)]
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    page.head("cic_step_seconds", "summary", "time of one step of the core");
    page.row("cic_step_seconds_sum", &[], seconds(read(&counts.nanos)));
    page.row("cic_step_seconds_count", &[], read(&counts.steps));
    page.one("cic_step_max_seconds", "longest step since the start", seconds(read(&counts.nanos_max)));
    page.one("cic_actions_total", "actions decided by the core", read(&counts.actions));
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn one(&mut self, name: &str, help: &str, value: impl Display) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        self.head(name, kind, help);
        self.row(name, &[], value);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Label values are ids and constants, so none needs escaping.
    fn row(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}
