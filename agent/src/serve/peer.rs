//! The port for controllers and peers: HTTP over mutual TLS, refused at the handshake without a certificate.
//!
//! `GET /v1/poll` answers controllers with this node's heartbeat: the second witness. `POST /v1/command` takes their
//! commands where the control stream does not. `GET /v1/model-files` gives other nodes the files of the model that is served here.
//! Everything else under `/v1/` is inference from another node and goes to
//! the edge.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::tls::{Peer, peer};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::files::{FILES_PATH, Shelf};
use super::order::OrderDesk;
use crate::effect::link::Pulse;

/// Connections at once: every controller and every peer's pool, with room.
const CONNECTIONS_MAX: usize = 1024;

/// A TLS handshake is two round trips.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// An idle connection is kept this long: several poll intervals of 10 s.
const IDLE_MAX: Duration = Duration::from_secs(75);

/// Out of file descriptors or memory: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Any error a body may end in.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Body of every response of the peer port.
pub type PeerBody = UnsyncBoxBody<Bytes, BodyError>;

/// The future of one response.
pub type PeerReply = Pin<Box<dyn Future<Output = Response<PeerBody>> + Send>>;

/// Answers a request of another node: the edge's side of the peer port.
pub type PeerEdge = Arc<dyn Fn(Request<Incoming>, Peer) -> PeerReply + Send + Sync>;

/// The peer port of one agent.
#[derive(Clone)]
pub struct PeerPort {
    /// From [`cic_common::tls::config::tcp_server`].
    pub tls: Arc<rustls::ServerConfig>,
    pub pulse: Arc<Pulse>,
    pub edge: PeerEdge,
    pub orders: OrderDesk,
    /// What other nodes may fetch here.
    pub files: Option<Shelf>,
}

impl PeerPort {
    /// Serves `listener` until `token` is cancelled; connections then finish what they are answering.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn run(
        self,
        listener: TcpListener,
        supervisor: Supervisor,
        token: CancellationToken,
    ) -> TaskResult {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // Cancel-safe: a connection is only taken with its arm.
            let accepted = tokio::select! {
                () = token.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "peer connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                debug!("peer connection refused: too many");
                continue;
            };
            let port = self.clone();
            supervisor.spawn("peer connection", Kind::Passing, |token| async move {
                let result = port.connection(stream, token).await;
                drop(place);
                result
            });
        }
    }

    async fn connection(self, stream: TcpStream, token: CancellationToken) -> TaskResult {
        stream.set_nodelay(true)?;
        let handshake = TlsAcceptor::from(Arc::clone(&self.tls)).accept(stream);
        let stream = timeout(HANDSHAKE_DEADLINE, handshake).await??;
        let (_, session) = stream.get_ref();
        let caller = peer::of_tls(session)?.ok_or("no certificate")?;
        let service = service_fn(move |request| {
            let (port, caller) = (self.clone(), caller.clone());
            async move { Ok::<_, Infallible>(port.answer(request, caller).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_MAX)
            .serve_connection(TokioIo::<TlsStream<TcpStream>>::new(stream), service);
        tokio::pin!(connection);
        // Cancel-safe: the connection is polled on in the other arm.
        tokio::select! {
            result = &mut connection => return Ok(result?),
            () = token.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }

    async fn answer(&self, request: Request<Incoming>, caller: Peer) -> Response<PeerBody> {
        let path = request.uri().path();
        match caller {
            Peer::Controller(_) if path == "/v1/poll" && request.method() == Method::GET => self.polled(),
            Peer::Controller(_) if path == "/v1/command" && request.method() == Method::POST => {
                self.ordered(request).await
            }
            Peer::Controller(_) => {
                text(StatusCode::NOT_FOUND, "controllers may GET /v1/poll and POST /v1/command")
            }
            Peer::Node(_) if path == "/v1/poll" || path == "/v1/command" => {
                text(StatusCode::FORBIDDEN, "only controllers may poll and command")
            }
            Peer::Node(_) if path == FILES_PATH => {
                self.given(request.uri().query().unwrap_or_default()).await
            }
            // A stream that is continued may need its tokens decoded.
            Peer::Node(_) if path.starts_with("/v1/") || path == "/detokenize" => {
                (self.edge)(request, caller).await
            }
            Peer::Node(_) => text(StatusCode::NOT_FOUND, "nothing but /v1/ here"),
        }
    }

    fn polled(&self) -> Response<PeerBody> {
        self.pulse.polled();
        json(&self.pulse.beat(0))
    }

    async fn given(&self, query: &str) -> Response<PeerBody> {
        let Some(files) = &self.files else { return text(StatusCode::NOT_FOUND, "no files here") };
        match files.take(query).await {
            Ok(bytes) => Response::new(full(bytes)),
            Err((status, why)) => text(status, &why),
        }
    }

    async fn ordered(&self, request: Request<Incoming>) -> Response<PeerBody> {
        self.pulse.polled();
        match self.orders.take(request).await {
            Ok(outcome) => json(&outcome),
            Err(fault) => text(fault.status(), &fault.to_string()),
        }
    }
}

impl std::fmt::Debug for PeerPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerPort").field("node", self.pulse.node()).finish_non_exhaustive()
    }
}

fn json(value: &impl Serialize) -> Response<PeerBody> {
    match serde_json::to_vec(value) {
        Ok(json) => {
            let mut response = Response::new(full(json));
            let json = hyper::header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, text: &str) -> Response<PeerBody> {
    let mut response = Response::new(full(format!("{text}\n").into_bytes()));
    *response.status_mut() = status;
    response
}

fn full(bytes: impl Into<Bytes>) -> PeerBody {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}
