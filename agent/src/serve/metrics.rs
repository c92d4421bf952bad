//! `/metrics`, `/healthz` and `/gpus` for this machine alone.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cic_common::report::{EdgeReport, EngineState, NodeReport, Phase};
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::edge::{CutStreams, Edge};
use super::gpu_metrics::{self, GpuBoard};
use crate::effect::checkpoint::Checkpoints;
use crate::effect::link::Pulse;

/// Out of file descriptors or memory: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest a connection lives: a scrape takes milliseconds.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// The port for scrapes.
#[derive(Debug, Clone)]
pub struct MetricsPort {
    pub pulse: Arc<Pulse>,
    pub edge: Edge,
    pub gpus: GpuBoard,
    pub checkpoints: Option<Checkpoints>,
    /// How long until this machine ends itself if nobody speaks; `None` where it does not.
    pub power_off_in: watch::Receiver<Option<Duration>>,
}

impl MetricsPort {
    /// Serves `listener` until `token` is cancelled.
    ///
    /// # Errors
    /// Never; the signature is that of a task.
    pub async fn run(self, listener: TcpListener, tasks: Supervisor, token: CancellationToken) -> TaskResult {
        loop {
            // Cancel safe: a connection is only taken with its arm.
            let accepted = tokio::select! {
                () = token.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let port = self.clone();
            tasks.spawn("metrics connection", Kind::Passing, |token| async move {
                let service = service_fn(|request| {
                    let answer = port.answer(&request);
                    async { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                // Cancel safe: the connection is dropped with its client.
                tokio::select! {
                    () = token.cancelled() => Ok(()),
                    result = tokio::time::timeout(CONNECTION_MAX, connection) => Ok(result??),
                }
            });
        }
    }

    /// The page of `/metrics`.
    #[must_use]
    pub fn text(&self) -> String {
        let report = self.pulse.report();
        let gpus = gpu_metrics::text(&self.gpus.newest(), &report.gpu);
        let edge = &self.edge;
        let checkpoints = self.checkpoints.as_ref().map(Checkpoints::text).unwrap_or_default();
        let power_off = power_off(*self.power_off_in.borrow());
        text(&report, &edge.report())
            + &streams(edge)
            + &power_off
            + &edge.scarcity_text()
            + &checkpoints
            + &gpus
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, text) = match request.uri().path() {
            "/healthz" => {
                (StatusCode::OK, serde_json::to_string_pretty(&self.pulse.report()).unwrap_or_default())
            }
            "/gpus" => {
                (StatusCode::OK, serde_json::to_string_pretty(&self.gpus.newest()).unwrap_or_default())
            }
            "/metrics" => (StatusCode::OK, self.text()),
            _ => (StatusCode::NOT_FOUND, "there is /metrics, /healthz and /gpus\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }
}

/// Prometheus's text format.
fn text(report: &NodeReport, edge: &EdgeReport) -> String {
    let mut text = String::new();
    for phase in Phase::ALL {
        let _ = writeln!(text, "cic_agent_phase{{phase=\"{phase}\"}} {}", u8::from(report.phase == phase));
    }
    let is_stalled = report.engine.state == EngineState::Stalled;
    for (name, value) in [
        ("cic_agent_engine_stalled", u64::from(is_stalled)),
        ("cic_agent_engine_drift", u64::from(report.engine.drift.is_some())),
        ("cic_agent_phase_seconds", report.phase_for_ms / 1000),
        ("cic_agent_engine_restarts_total", u64::from(report.engine.restart_count)),
        ("cic_agent_edge_in_flight_requests", u64::from(edge.in_flight)),
        ("cic_agent_edge_requests_total", edge.request_count),
        ("cic_agent_edge_retries_total", edge.retry_count),
        ("cic_agent_edge_failures_total", edge.failure_count),
        ("cic_agent_memory_used_bytes", report.host.memory_used.0),
        ("cic_agent_disk_free_bytes", report.host.disk_free.0),
    ] {
        let _ = writeln!(text, "{name} {value}");
    }
    text
}

fn power_off(left: Option<Duration>) -> String {
    left.map_or_else(String::new, |left| format!("cic_agent_power_off_in_seconds {}\n", left.as_secs()))
}

/// What became of streams whose replica was lost.
fn streams(edge: &Edge) -> String {
    let CutStreams { cut_count, continued_count, waited_ms, waited_ms_max } = edge.cut_streams();
    let kept_bytes = edge.kept_bytes();
    let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
    format!(
        "cic_agent_edge_cut_streams_total {cut_count}\n\
         cic_agent_edge_continuations_total {continued_count}\n\
         cic_agent_edge_continuation_wait_seconds_total {}\n\
         cic_agent_edge_continuation_wait_max_seconds {}\n\
         cic_agent_edge_kept_bytes {kept_bytes}\n",
        seconds(waited_ms),
        seconds(waited_ms_max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_phase_is_set() {
        let text = text(&NodeReport::booting(), &EdgeReport::default());
        assert!(text.contains("cic_agent_phase{phase=\"booting\"} 1\n"));
        assert_eq!(
            text.lines().filter(|line| line.starts_with("cic_agent_phase{") && line.ends_with(" 1")).count(),
            1
        );
    }
}
