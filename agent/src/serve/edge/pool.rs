//! Connections to replicas, kept open between requests.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cic_common::id::NodeId;
use cic_common::supervise::{Supervisor, TaskResult};
use cic_common::time::{Clock, Mono};
use cic_common::tls::Peer;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Inflow};

/// Name, TCP and TLS together. Between regions a handshake takes 0.5 s; a node that takes longer is passed over.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// The kernel of the other machine is asked so often on a connection on which nothing comes. One that answers neither that
/// nor data for so long is over: a firewall has forgotten it, while new ones may pass.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const UNANSWERED_MAX: Duration = Duration::from_secs(8);

/// vLLM's server closes an idle connection after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE).
const OWN_IDLE_MAX: Duration = Duration::from_secs(3);

/// The peer port closes an idle connection after 75 s.
const PEER_IDLE_MAX: Duration = Duration::from_secs(60);

/// Load balancers before public APIs close an idle connection after 60 s or more (AWS's default).
const OUTSIDE_IDLE_MAX: Duration = Duration::from_secs(30);

/// Idle connections kept per replica: as many as an engine runs requests at once (vLLM: 256), and as many again for its
/// queue. With fewer, each request above them opens a connection anew.
const IDLE_MAX: usize = 512;

/// Between two looks at all idle connections. A replica that closes one has its side of it for so long.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Where a request can be sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Upstream {
    /// This node's engine on 127.0.0.1.
    Own { node: NodeId, port: u16 },
    /// Another node's peer port. Its certificate must name `node`, whatever the address.
    Peer { node: NodeId, address: Arc<str> },
    /// An API that is none of this fleet's, under a name of ours. With TLS its certificate must name `host`.
    Outside { node: NodeId, host: String, port: u16, is_tls: bool },
}

impl Upstream {
    pub(super) fn node(&self) -> &NodeId {
        match self {
            Self::Own { node, .. } | Self::Peer { node, .. } | Self::Outside { node, .. } => node,
        }
    }

    /// What it is called in the `Host` header.
    pub(super) fn host(&self) -> HeaderValue {
        let host = match self {
            Self::Own { port, .. } => format!("127.0.0.1:{port}"),
            Self::Peer { address, .. } => address.to_string(),
            // RFC 9110, 7.2: without the port where it is the scheme's own.
            Self::Outside { host, port: 443, is_tls: true, .. } => host.clone(),
            Self::Outside { host, port, .. } => format!("{host}:{port}"),
        };
        HeaderValue::from_str(&host).unwrap_or_else(|_| HeaderValue::from_static("replica"))
    }

    fn idle_max(&self) -> Duration {
        match self {
            Self::Own { .. } => OWN_IDLE_MAX,
            Self::Peer { .. } => PEER_IDLE_MAX,
            Self::Outside { .. } => OUTSIDE_IDLE_MAX,
        }
    }
}

/// Why a request brought no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("not connected: {0}")]
    Connect(#[source] io::Error),
    #[error("not connected within {} s", CONNECT_DEADLINE.as_secs())]
    ConnectLate,
    #[error("this node has no identity to show to its peers")]
    NoIdentity,
    #[error("connection broke: {0}")]
    Broken(#[source] hyper::Error),
}

impl SendError {
    /// Whether the replica cannot have seen the request.
    pub(super) fn is_unsent(&self) -> bool {
        match self {
            Self::Connect(_) | Self::ConnectLate | Self::NoIdentity => true,
            Self::Broken(_) => false,
        }
    }
}

/// Open connections to replicas. Clones share them.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    supervisor: Supervisor,
    tls: Option<Arc<ClientConfig>>,
    idle: Mutex<BTreeMap<Upstream, Vec<Idle>>>,
}

struct Idle {
    connection: Connection,
    since: Mono,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// The connection a response comes on. Dropped, it closes the connection.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Pool,
    upstream: Upstream,
    pub(super) connection: Connection,
}

impl Pool {
    /// `tls` shows this node's certificate to peers; without it only the own engine is reached.
    pub(super) fn new(clock: Clock, supervisor: Supervisor, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { shared: Arc::new(Shared { clock, supervisor, tls, idle: Mutex::default() }) }
    }

    /// Sends `request` on an open connection, or on a new one.
    pub(super) async fn send(
        &self,
        upstream: &Upstream,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Inflow>, SendError> {
        while let Some(mut connection) = self.take(upstream) {
            match connection.send(request).await {
                Ok(response) => return Ok(self.leased(upstream, connection, response)),
                // Closed by the other side while it lay idle: it never saw the request.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(error.into_error())),
                },
            }
        }
        // In a place of its own: a handshake takes much more room than all else that a request needs.
        Box::pin(self.send_afresh(upstream, request)).await
    }

    /// Sends `request` on a new connection: what one that was frozen cannot answer.
    pub(super) async fn send_afresh(
        &self,
        upstream: &Upstream,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Inflow>, SendError> {
        let mut connection = self.connect(upstream).await?;
        let response = connection.send(request).await;
        let response = response.map_err(|error| SendError::Broken(error.into_error()))?;
        Ok(self.leased(upstream, connection, response))
    }

    /// Closes idle connections in time, and all of them when `token` is cancelled.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub(super) async fn sweep(self, token: CancellationToken) -> TaskResult {
        let mut turns = interval(SWEEP_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel safe: a tick that is dropped comes again.
            tokio::select! {
                () = token.cancelled() => break,
                _ = turns.tick() => self.close_stale(),
            }
        }
        self.lock().clear();
        Ok(())
    }

    /// Closes what is idle for too long or was closed by its replica. Replicas come and go: a list that nobody takes
    /// from any more ends here.
    fn close_stale(&self) {
        let now = self.shared.clock.now();
        self.lock().retain(|upstream, list| {
            list.retain_mut(|idle| {
                now.since(idle.since) < upstream.idle_max() && idle.connection.is_usable()
            });
            !list.is_empty()
        });
    }

    fn leased(
        &self,
        upstream: &Upstream,
        connection: Connection,
        response: Response<Incoming>,
    ) -> Response<Inflow> {
        let lease = Lease { pool: self.clone(), upstream: upstream.clone(), connection };
        response.map(|body| Inflow::new(body, lease))
    }

    fn take(&self, upstream: &Upstream) -> Option<Connection> {
        loop {
            let mut idle = self.lock().get_mut(upstream)?.pop()?;
            let is_fresh = self.shared.clock.now().since(idle.since) < upstream.idle_max();
            if is_fresh && idle.connection.is_usable() {
                return Some(idle.connection);
            }
        }
    }

    fn give_back(&self, upstream: Upstream, connection: Connection) {
        if self.shared.supervisor.token().is_cancelled() {
            return;
        }
        let idle = Idle { connection, since: self.shared.clock.now() };
        let mut lists = self.lock();
        let list = lists.entry(upstream).or_default();
        if list.len() < IDLE_MAX {
            list.push(idle);
        }
    }

    async fn connect(&self, upstream: &Upstream) -> Result<Connection, SendError> {
        let connecting = async {
            match upstream {
                Upstream::Own { port, .. } => begin(tcp(&format!("127.0.0.1:{port}")).await?).await,
                Upstream::Peer { node, address } => {
                    let tls = self.shared.tls.clone().ok_or(SendError::NoIdentity)?;
                    let stream = tcp_afar(address).await?;
                    let name = Peer::Node(node.clone()).server_name();
                    let stream = TlsConnector::from(tls).connect(name, stream).await;
                    begin(stream.map_err(SendError::Connect)?).await
                }
                Upstream::Outside { host, port, is_tls, .. } => {
                    let stream = tcp(&format!("{host}:{port}")).await?;
                    if !is_tls {
                        return begin(stream).await;
                    }
                    let tls = self.shared.tls.clone().ok_or(SendError::NoIdentity)?;
                    let name = ServerName::try_from(host.clone())
                        .map_err(|error| SendError::Connect(io::Error::other(error)))?;
                    let stream = TlsConnector::from(tls).connect(name, stream).await;
                    begin(stream.map_err(SendError::Connect)?).await
                }
            }
        };
        timeout(CONNECT_DEADLINE, connecting).await.unwrap_or(Err(SendError::ConnectLate))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Upstream, Vec<Idle>>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// The body was read to its end: the connection can carry another request.
    pub(super) fn give_back(self) {
        self.pool.give_back(self.upstream, self.connection);
    }
}

async fn begin<S>(stream: S) -> Result<Connection, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Connection::begin(stream).await.map_err(SendError::Connect)
}

/// A connection to another node: one whose packets are lost is told from one on which nothing is said.
async fn tcp_afar(address: &str) -> Result<TcpStream, SendError> {
    let stream = tcp(address).await?;
    watch(&stream).map_err(|errno| SendError::Connect(errno.into()))?;
    Ok(stream)
}

fn watch(stream: &TcpStream) -> Result<(), nix::Error> {
    let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds(KEEPALIVE_EVERY))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds(KEEPALIVE_EVERY))?;
    setsockopt(
        stream,
        sockopt::TcpUserTimeout,
        &u32::try_from(UNANSWERED_MAX.as_millis()).unwrap_or(u32::MAX),
    )
}

async fn tcp(address: &str) -> Result<TcpStream, SendError> {
    let stream = TcpStream::connect(address).await.map_err(SendError::Connect)?;
    stream.set_nodelay(true).map_err(SendError::Connect)?;
    Ok(stream)
}
