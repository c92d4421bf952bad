//! The QUIC port of a controller.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cic_common::id::{ControllerId, NodeId};
use cic_common::route::RoutingTable;
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::tls::config::{TlsError, quic_server};
use cic_common::tls::quic::{ResetKeyError, controller_endpoint};
use cic_common::tls::{CertificateAuthority, Identity, Trust};
use cic_common::wire::close::CloseCode;
use cic_common::wire::version::ALPN_ENROL;
use nix::sys::socket::{setsockopt, sockopt};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::enrol::{self, IssueLog, JoinDesk, Registry};
use super::outgoing::Greeting;
use super::refusal::{Refusal, Refusals};
use super::roster::Roster;
use super::session::{self, Desk};
use super::tables::Tables;
use crate::core::{Event, Message};
use crate::histogram::Histogram;

/// Handshakes at once: each is a signature and two verifications, about a millisecond of one core.
const HANDSHAKES_MAX: usize = 128;

/// From this many on a peer must first prove its address (a QUIC retry), so that a flood with forged senders
/// costs one packet each.
const HANDSHAKES_UNPROVEN_MAX: usize = 32;

/// Connections at once: the largest fleet that is measured (10,000 nodes, `cargo xtask bench controller`), and room for
/// those that redial before their old connections are over.
const CONNECTIONS_MAX: usize = 16_384;

/// Room for what comes while this process does not run: the kernel counts about 1 KiB a packet, and ten thousand nodes
/// send some thirty thousand packets a second (heartbeats, acknowledgements, keep-alives), so 4 MiB are a tenth of a
/// second. Linux's own 208 KiB are 7 ms: while handshakes take the thread, packets of those who are in were lost until
/// they were out, and dialled again. The kernel gives no more than `net.core.rmem_max`.
const RECEIVE_BYTES: usize = 4 << 20;

/// Three lost packets at growing distances.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Heartbeats reach the core in one batch this often: far below the seconds that verdicts count in.
const BATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Time for the agents to be told that this controller leaves.
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("TLS cannot be configured")]
    Tls(#[from] TlsError),
    #[error("reset key cannot be had")]
    ResetKey(#[from] ResetKeyError),
    #[error("UDP socket cannot be used")]
    Socket(#[source] std::io::Error),
}

/// What the port takes to run.
#[derive(Clone)]
pub struct IngestSpec {
    pub controller: ControllerId,
    /// What agents are told in their welcome.
    pub heartbeat_ms: u32,
    pub identity: Identity,
    pub trust: Trust,
    pub authority: Arc<CertificateAuthority>,
    /// Life of a node's certificate.
    pub certificate_span: Duration,
    /// Kept beside the identity; see [`controller_endpoint`].
    pub reset_key_path: PathBuf,
    pub desk: JoinDesk,
    pub issue_log: IssueLog,
}

/// The running port. Clones share it.
#[derive(Debug, Clone)]
pub struct Ingest {
    desk: Arc<Desk>,
    greeting: Greeting,
    local_address: SocketAddr,
}

impl Ingest {
    /// Serves `socket` as tasks of `supervisor`. What agents say goes to `core`.
    ///
    /// # Errors
    /// When TLS cannot be configured, the reset key cannot be had or the socket is of no use.
    pub fn start(
        supervisor: &Supervisor,
        socket: UdpSocket,
        spec: IngestSpec,
        core: mpsc::Sender<Event>,
    ) -> Result<Self, IngestError> {
        // Less is no reason not to serve: a small fleet needs no more.
        let _smaller = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BYTES);
        let server = quic_server(&spec.identity, &spec.trust)?;
        let config = controller_endpoint(&spec.reset_key_path)?;
        let endpoint = Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
            .map_err(IngestError::Socket)?;
        let local_address = endpoint.local_addr().map_err(IngestError::Socket)?;
        let IngestSpec { authority, certificate_span, desk, issue_log, .. } = spec;
        let desk = Arc::new(Desk {
            roster: Roster::default(),
            refusals: Arc::new(Refusals::default()),
            registry: Registry::new(authority, certificate_span, desk, issue_log),
            core,
            tables: Tables::default(),
        });
        info!(address = %local_address, "agents' port open");
        let (accepting, inner) = (Arc::clone(&desk), supervisor.clone());
        supervisor.spawn("agents' port", Kind::Vital, |token| accept(accepting, endpoint, inner, token));
        let batching = Arc::clone(&desk);
        supervisor.spawn("heartbeat batches", Kind::Vital, |token| batch(batching, token));
        let greeting = Greeting { controller: spec.controller, heartbeat_ms: spec.heartbeat_ms };
        Ok(Self { desk, greeting, local_address })
    }

    /// The address that was bound; of use when port 0 was asked for.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// Says something to a node, in order. Lost when the node is not connected.
    pub fn send(&self, node: &NodeId, message: Message) {
        self.desk.roster.send(node, self.greeting.message(message));
    }

    /// Makes a table known to every connected node, one after the other. A newer one overtakes it.
    pub fn publish_routes(&self, table: RoutingTable) {
        self.desk.tables.publish(table);
    }

    /// Cuts off and forgets a node that is gone for good.
    pub fn forget(&self, node: &NodeId) {
        self.desk.roster.forget(node);
    }

    /// The core has taken the oldest batch of heartbeats.
    pub fn beats_taken(&self) {
        self.desk.roster.beats_taken();
    }

    /// From the arrival of each heartbeat to the step of the core that took it.
    #[must_use]
    pub fn beat_spans(&self) -> &Histogram {
        self.desk.roster.beat_spans()
    }

    #[must_use]
    pub fn connected_count(&self) -> usize {
        self.desk.roster.live_count()
    }

    #[must_use]
    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.desk.refusals
    }
}

impl std::fmt::Debug for IngestSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngestSpec").field("controller", &self.controller).finish_non_exhaustive()
    }
}

async fn accept(
    desk: Arc<Desk>,
    endpoint: Endpoint,
    supervisor: Supervisor,
    token: CancellationToken,
) -> TaskResult {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        // Cancel-safe: a connection is only taken with its arm.
        let incoming = tokio::select! {
            () = token.cancelled() => break,
            incoming = endpoint.accept() => incoming.ok_or("UDP socket is gone")?,
        };
        let peer = incoming.remote_address().ip();
        let handshakes = HANDSHAKES_MAX - room.available_permits();
        if handshakes >= HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() {
            // The only error is that no retry is allowed, which was asked.
            let _ = incoming.retry();
            continue;
        }
        let place = Arc::clone(&room).try_acquire_owned();
        let Some(place) = place.ok().filter(|_| endpoint.open_connections() < CONNECTIONS_MAX) else {
            desk.refusals.add(Refusal::Busy, peer, &"no room for another connection");
            incoming.refuse();
            continue;
        };
        let desk = Arc::clone(&desk);
        supervisor.spawn("agent connection", Kind::Passing, |token| async move {
            let Some(connection) = handshake(&desk, incoming).await else {
                return Ok(());
            };
            drop(place);
            // Cancel-safe: the endpoint closes every connection when the program stops.
            tokio::select! {
                () = token.cancelled() => {}
                () = serve(&desk, &connection) => {}
            }
            Ok(())
        });
    }
    endpoint.close(CloseCode::Done.number().into(), b"controller stops");
    // Elapsed or not, the socket goes with the endpoint.
    let _ = timeout(CLOSE_WITHIN, endpoint.wait_idle()).await;
    Ok(())
}

async fn handshake(desk: &Desk, incoming: Incoming) -> Option<Connection> {
    let peer = incoming.remote_address().ip();
    let result = match incoming.accept() {
        Ok(connecting) => timeout(HANDSHAKE_DEADLINE, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    match result {
        Ok(Ok(connection)) => return Some(connection),
        Ok(Err(error)) => desk.refusals.add(Refusal::Handshake, peer, &error),
        Err(_) => desk.refusals.add(Refusal::Late, peer, &"handshake not finished in time"),
    }
    None
}

async fn serve(desk: &Desk, connection: &Connection) {
    if speaks(connection).as_deref() == Some(ALPN_ENROL) {
        enrol::serve(&desk.registry, &desk.refusals, connection).await;
    } else {
        session::serve(desk, connection).await;
    }
}

fn speaks(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

async fn batch(desk: Arc<Desk>, token: CancellationToken) -> TaskResult {
    let mut ticks = tokio::time::interval(BATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        // With the core's queue full the beats stay, and newer ones replace them.
        if desk.roster.has_beats()
            && let Ok(permit) = desk.core.try_reserve()
        {
            desk.roster.deliver_beats(permit);
        }
    }
}
