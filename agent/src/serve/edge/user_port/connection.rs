//! One connection of a user, from its first byte to its last.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::{Kind, Supervisor, TaskResult};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::gate::{Gate, Line};
use super::limits::{
    CONNECTION_WINDOW_BYTES, FINISH_WITHIN, HANDSHAKE_WITHIN, HEAD_BYTES_MAX, PING_ANSWER_WITHIN, PING_EVERY,
    SEND_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_ERROR_RESET_MAX, STREAMS_MAX, STREAMS_PENDING_RESET_MAX,
};
use super::outflow::Flows;
use super::tls::Certificate;
use super::watched::{Sentence, Wire};

/// Between two looks at a connection's deadlines, at most; shorter where they are.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// Serves `stream` until it ends, is cut, or `token` is cancelled; what runs then has [`FINISH_WITHIN`].
pub(super) async fn serve(
    gate: Arc<Gate>,
    certificate: Option<Certificate>,
    stream: TcpStream,
    address: SocketAddr,
    supervisor: Supervisor,
    token: CancellationToken,
) -> TaskResult {
    let wire = Wire::new(stream, &gate.limits, gate.clock)?;
    let (client, flows) = (address.ip().to_canonical(), Flows::new(gate.clock));
    let line = Line { client, wire, flows, stopping: Arc::new(token.clone()) };
    match certificate {
        None => exchange(gate, line.wire.watched(), line, supervisor, token).await,
        Some(certificate) => {
            let handshake = TlsAcceptor::from(certificate.server).accept(line.wire.watched());
            // Cancel safe: a handshake that is dropped closes its connection.
            let stream = tokio::select! {
                result = timeout(HANDSHAKE_WITHIN, handshake) => result??,
                () = token.cancelled() => return Ok(()),
            };
            exchange(gate, stream, line, supervisor, token).await
        }
    }
}

async fn exchange<S>(
    gate: Arc<Gate>,
    stream: S,
    line: Line,
    supervisor: Supervisor,
    token: CancellationToken,
) -> TaskResult
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stall_max = gate.limits.stall_max;
    let look_every = (stall_max.min(gate.limits.head_within) / 4).min(LOOK_EVERY_MAX);
    let to_gate = line.clone();
    let service = service_fn(move |request| {
        let (gate, line) = (Arc::clone(&gate), to_gate.clone());
        // In a place of its own: hyper moves what it is given, and on HTTP/2 keeps room for it several times.
        Box::pin(async move { Ok::<_, Infallible>(gate.pass(request, line).await) })
    });
    let builder = builder(Streams(supervisor));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut is_closing = false;
    tokio::pin!(connection);
    let mut looks = interval(look_every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        // Cancel safe: the connection is polled on in the next turn, and a tick that is dropped comes again. In this
        // order: a flood on the connection uses up what the task may do at a time, and would hide the looks.
        tokio::select! {
            biased;
            () = token.cancelled() => break,
            _ = looks.tick() => {
                line.flows.free_stalled(stall_max);
                match line.wire.look() {
                    Some(Sentence::Stalled) => {
                        debug!(client = %line.client, "connection cut: it takes nothing");
                        line.flows.free_stalled(Duration::ZERO);
                        return Ok(());
                    }
                    Some(Sentence::Cut(why)) => {
                        debug!(client = %line.client, why, "connection cut");
                        return Ok(());
                    }
                    Some(Sentence::Close) if !is_closing => {
                        // A request may be on its way to us: it is answered like any other.
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Some(Sentence::Close) | None => {}
                }
            }
            result = &mut connection => return result,
        }
    }
    connection.as_mut().graceful_shutdown();
    timeout(FINISH_WITHIN, connection).await?
}

fn builder(streams: Streams) -> Builder<Streams> {
    let mut builder = Builder::new(streams);
    // The time for a head is kept by the wire, which knows when its first byte came.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(STREAMS_PENDING_RESET_MAX)
        .max_local_error_reset_streams(STREAMS_ERROR_RESET_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER_WITHIN);
    builder
}

/// Runs the streams of HTTP/2 connections as tasks of the program's supervisor.
#[derive(Clone)]
struct Streams(Supervisor);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.spawn("user stream", Kind::Passing, |token| async move {
            let cut = async {
                token.cancelled().await;
                tokio::time::sleep(FINISH_WITHIN).await;
            };
            // Cancel safe: both ways the stream is over.
            tokio::select! {
                () = stream => {}
                () = cut => {}
            }
            Ok(())
        });
    }
}
