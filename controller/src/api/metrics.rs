//! `/metrics` in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use cic_common::report::{EngineState, GpuReport};

use super::server::Api;
use crate::core::{Belief, View, XidCount};
use crate::driver::{self, StepCounts};
use crate::health::CheckState;
use crate::histogram::Histogram;
use crate::links::Links;
use crate::store::{self, QueueCounts};

/// Version 0.0.4 of the exposition format, which every scraper reads.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

const BELIEFS: [Belief; 6] =
    [Belief::Unknown, Belief::Alive, Belief::SuspectPoll, Belief::SuspectPush, Belief::Silent, Belief::Gone];

/// Words of [`cic_common::gpu::GpuVerdict`].
const VERDICTS: [&str; 3] = ["healthy", "degraded", "unhealthy"];

/// `GET /metrics`
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    let mut page = Page::default();
    let published = api.look().await;
    fleet(&mut page, &published.view);
    condition(&mut page, &published.view);
    stored(&mut page, &api.leadership.queue_counts());
    let leads = api.leadership.may_act(api.clock.now()).is_some();
    page.head("cic_controller_leads", "gauge", "1 on the leader while its lease holds");
    page.row("cic_controller_leads", &[], u8::from(leads));
    steps(&mut page, &api.driver.counts);
    checks(&mut page, &api.checks());
    if let Some(links) = &api.links {
        nodes(&mut page, links);
    }
    queues(&mut page, &api);
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
    page.one("cic_orphans", "VMs of this fleet that no row knows", view.orphans.len());
    page.one("cic_foreign_instances", "VMs of other fleets in the last listings", view.foreign_count);
    page.one("cic_holds", "reasons for which irreversible acts are held", view.holds.len());
}

/// What nodes say of their GPUs and engines.
fn condition(page: &mut Page, view: &View) {
    let reports = || view.nodes.iter().filter_map(|node| Some((node.node.as_str(), node.report.as_ref()?)));
    page.head("cic_node_gpus", "gauge", "GPUs of a node by its verdict");
    for (node, report) in reports() {
        if let GpuReport::Seen(summary) = &report.gpu {
            for verdict in VERDICTS {
                let count = summary.gpus.iter().filter(|gpu| gpu.verdict.as_str() == verdict).count();
                page.row("cic_node_gpus", &[("node", node), ("verdict", verdict)], count);
            }
        }
    }
    let with_gpus = || reports().filter(|(_, report)| report.gpu != GpuReport::Absent);
    page.head("cic_node_gpu_blind", "gauge", "1 while a node has GPUs and can read none");
    for (node, report) in with_gpus() {
        let is_blind = matches!(report.gpu, GpuReport::Blind { .. });
        page.row("cic_node_gpu_blind", &[("node", node)], u8::from(is_blind));
    }
    page.head("cic_node_gpu_wedged", "gauge", "1 while a node's GPU driver hangs");
    for (node, report) in with_gpus() {
        let is_wedged = matches!(report.gpu, GpuReport::Wedged { .. });
        page.row("cic_node_gpu_wedged", &[("node", node)], u8::from(is_wedged));
    }
    page.head("cic_node_engine_stalled", "gauge", "1 while a node's engine has work and none of it moves");
    for (node, report) in reports() {
        let is_stalled = report.engine.state == EngineState::Stalled;
        page.row("cic_node_engine_stalled", &[("node", node)], u8::from(is_stalled));
    }
    page.head(
        "cic_node_notice_left_seconds",
        "gauge",
        "what the most urgent notice leaves a node, as it last said",
    );
    for (node, report) in reports() {
        if let Some(notice) = &report.notice {
            let labels = [("node", node), ("kind", &*notice.kind.to_string())];
            page.row("cic_node_notice_left_seconds", &labels, notice.left_ms / 1000);
        }
    }
    page.head("cic_node_notice_sources_blind", "gauge", "sources of notices that a node cannot read");
    for (node, report) in reports() {
        page.row("cic_node_notice_sources_blind", &[("node", node)], report.spot.blind.len());
    }
    page.head("cic_xids_total", "counter", "XIDs that nodes told of, by code and what is to be done");
    for XidCount { code, action, count } in &view.xids {
        let code = code.map_or_else(|| "other".to_owned(), |code| code.to_string());
        page.row("cic_xids_total", &[("code", &code), ("action", action.as_str())], count);
    }
}

fn stored(page: &mut Page, counts: &QueueCounts) {
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
    page.one("cic_polls_unasked_total", "urgent polls for which there was no room", read(&polls.unasked));
    page.one("cic_polls_failed_total", "polls without a report", read(&polls.failed));
    page.one(
        "cic_poll_channels_lost_total",
        "warm connections closed by the node",
        read(&polls.channels_lost),
    );
    let help = "from the arrival of a heartbeat to the step that took it";
    page.spans("cic_ingest_seconds", help, links.ingest.beat_spans());
}

/// How long each queue ever was, and how long it may be.
fn queues(page: &mut Page, api: &Api) {
    let (counts, stored) = (&api.driver.counts, api.leadership.queue_counts());
    let mut queues = vec![
        ("events", counts.events_waiting_max.load(Ordering::Relaxed), driver::EVENTS_WAITING_MAX),
        ("writes", stored.writes_waiting_max, store::WRITES_WAITING_MAX),
        ("log", stored.events_waiting_max, store::EVENTS_WAITING_MAX),
    ];
    if let Some(links) = &api.links {
        let most = links.poller.counts().urgent_waiting_max.load(Ordering::Relaxed);
        queues.push(("urgent_polls", most, links.poller.urgent_bound()));
    }
    page.head("cic_queue_waiting_max", "gauge", "most that ever waited since the start");
    for (queue, most, _) in &queues {
        page.row("cic_queue_waiting_max", &[("queue", queue)], most);
    }
    page.head("cic_queue_bound", "gauge", "most that may wait");
    for (queue, _, bound) in &queues {
        page.row("cic_queue_bound", &[("queue", queue)], bound);
    }
}

fn steps(page: &mut Page, counts: &StepCounts) {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    #[allow(clippy::cast_precision_loss)]
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    page.spans("cic_step_seconds", "time of one step of the core", &counts.spans);
    page.one("cic_step_max_seconds", "longest step since the start", seconds(read(&counts.nanos_max)));
    page.one("cic_actions_total", "actions decided by the core", read(&counts.actions));
}

fn checks(page: &mut Page, checks: &[CheckState]) {
    page.head(
        "cic_controller_check_up",
        "gauge",
        "0 once a check of the control plane failed three times in a row",
    );
    for check in checks {
        let labels = [("check", check.name.as_str()), ("severity", check.severity.as_str())];
        page.row("cic_controller_check_up", &labels, u8::from(check.is_up));
    }
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

    fn spans(&mut self, name: &str, help: &str, spans: &Histogram) {
        self.head(name, "histogram", help);
        let (bucket, cumulative) = (format!("{name}_bucket"), spans.cumulative());
        for (bound_ns, count) in &cumulative {
            let bound = bound_ns.map_or_else(|| "+Inf".to_owned(), |ns| (ns as f64 / 1e9).to_string());
            self.row(&bucket, &[("le", &bound)], count);
        }
        self.row(&format!("{name}_sum"), &[], spans.sum_ns() as f64 / 1e9);
        self.row(&format!("{name}_count"), &[], cumulative.last().map_or(0, |(_, count)| *count));
    }

    /// Label values are ids and constants, so none needs escaping.
    fn row(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use cic_common::gpu::{GpuAction, GpuHealth, GpuSummary, GpuVerdict};
    use cic_common::notice::{BlindSource, Confidence, Notice, NoticeKind};
    use cic_common::report::NodeReport;

    use super::*;
    use crate::core::NodeView;

    fn has(page: &str, rows: &[&str]) {
        for row in rows {
            assert!(page.lines().any(|line| line == *row), "{row} in {page}");
        }
    }

    fn page(gpu: GpuReport, state: EngineState) -> String {
        let mut report = NodeReport { gpu, ..NodeReport::booting() };
        report.engine.state = state;
        let node = NodeView { report: Some(report), ..NodeView::sample("n1") };
        let xids = vec![
            XidCount { code: Some(79), action: GpuAction::ReplaceNode, count: 2 },
            XidCount { code: None, action: GpuAction::Report, count: 3 },
        ];
        let view = View { nodes: vec![node, NodeView::sample("n2")], xids, ..View::default() };
        let mut page = Page::default();
        condition(&mut page, &view);
        page.text
    }

    #[test]
    fn each_gpu_of_a_node_is_counted_under_its_verdict() {
        let gpu = |index, verdict| GpuHealth {
            index,
            verdict,
            memory_used: None,
            memory_total: None,
            utilization_percent: None,
            temperature_c: None,
        };
        let bad = GpuVerdict::Unhealthy { action: GpuAction::ResetGpu, reason: "XID 95".to_owned() };
        let gpus = vec![gpu(0, GpuVerdict::Healthy), gpu(1, bad.clone()), gpu(2, bad)];
        let page = page(GpuReport::Seen(GpuSummary { driver_version: None, gpus }), EngineState::Stalled);
        has(
            &page,
            &[
                "cic_node_gpus{node=\"n1\",verdict=\"healthy\"} 1",
                "cic_node_gpus{node=\"n1\",verdict=\"degraded\"} 0",
                "cic_node_gpus{node=\"n1\",verdict=\"unhealthy\"} 2",
                "cic_node_gpu_blind{node=\"n1\"} 0",
                "cic_node_gpu_wedged{node=\"n1\"} 0",
                "cic_node_engine_stalled{node=\"n1\"} 1",
                "cic_xids_total{code=\"79\",action=\"replace the node\"} 2",
                "cic_xids_total{code=\"other\",action=\"report\"} 3",
            ],
        );
        assert!(!page.contains("n2"), "a node that said nothing has no figures: {page}");
    }

    #[test]
    fn a_notice_and_blind_sources_are_figures_without_the_nodes_own_words() {
        let mut report = NodeReport::booting();
        report.notice = Some(Notice {
            kind: NoticeKind::Terminate,
            source: "\"x\"".to_owned(),
            id: "\"y\"".to_owned(),
            left_ms: 87_900,
            confidence: Confidence::Announced,
            resources: Vec::new(),
        });
        let blind = BlindSource { source: "\"z\"".to_owned(), for_ms: 1, cause: "\"".to_owned() };
        report.spot.blind = vec![blind];
        let node = NodeView { report: Some(report), ..NodeView::sample("n1") };
        let mut page = Page::default();
        condition(&mut page, &View { nodes: vec![node], ..View::default() });
        has(
            &page.text,
            &[
                "cic_node_notice_left_seconds{node=\"n1\",kind=\"terminate\"} 87",
                "cic_node_notice_sources_blind{node=\"n1\"} 1",
            ],
        );
        assert!(!page.text.contains("\"\""), "{}", page.text);
    }

    #[test]
    fn blind_and_wedged_are_figures_and_a_node_without_gpus_has_none() {
        let reason = || "hangs".to_owned();
        let blind = page(GpuReport::Blind { reason: reason() }, EngineState::Ready);
        has(&blind, &["cic_node_gpu_blind{node=\"n1\"} 1", "cic_node_gpu_wedged{node=\"n1\"} 0"]);
        let wedged = page(GpuReport::Wedged { reason: reason() }, EngineState::Ready);
        has(&wedged, &["cic_node_gpu_blind{node=\"n1\"} 0", "cic_node_gpu_wedged{node=\"n1\"} 1"]);
        let none = page(GpuReport::Absent, EngineState::Ready);
        assert!(!none.contains("cic_node_gpu_blind{"), "{none}");
        has(&none, &["cic_node_engine_stalled{node=\"n1\"} 0"]);
    }
}
