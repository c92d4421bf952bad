//! One task a controller: dial, talk, dial again.

use std::error::Error;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cic_common::backoff::Backoff;
use cic_common::report::Role;
use cic_common::route::RoutingTable;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::time::Clock;
use cic_common::tls::config::{TlsError, quic_client};
use cic_common::tls::{Identity, Trust};
use cic_common::wire::close::CloseCode;
use cic_common::wire::message::NodeEvent;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::dial::{DialError, Dialled, dial};
use super::event::LinkEvent;
use super::outbox::Outbox;
use super::pulse::Pulse;
use super::renewal::Renewal;
use super::session::{self, SessionError};

/// First wait after a loss; at most 250 ms with jitter. Most losses are a controller that restarts.
const REDIAL_INITIAL: Duration = Duration::from_millis(200);

/// Longest wait; 2.5 s with jitter. With [`super::dial`]'s last packet 0.9 s into an attempt of 3 s, a controller
/// that comes back hears every node within 5 s. A thousand nodes are then 400 small packets a second.
const REDIAL_MAX: Duration = Duration::from_secs(2);

/// Time for the last packet, which says that we leave, to go out.
const CLOSE_WITHIN: Duration = Duration::from_millis(250);

/// How this node presents itself, and to whom.
#[derive(Debug, Clone)]
pub struct LinkSpec {
    /// `host:port` of every controller.
    pub controllers: Vec<String>,
    pub role: Role,
    /// `host:port` at which this node's mTLS port can be reached.
    pub advertise: String,
    /// The agent's version, for people.
    pub version: String,
    pub keeps_checkpoints: bool,
}

/// The way to all controllers.
#[derive(Debug)]
pub struct Links {
    links: Vec<Arc<Link>>,
    live: Arc<AtomicUsize>,
    seq: AtomicU64,
    clock: Clock,
}

/// What the parts of one link share.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) number: usize,
    pub(super) address: String,
    pub(super) spec: Arc<LinkSpec>,
    pub(super) clock: Clock,
    pub(super) pulse: Arc<Pulse>,
    pub(super) renewal: Arc<Renewal>,
    pub(super) outbox: Outbox,
    /// The newest table of this controller, which its next changes begin with.
    pub(super) routes: Mutex<Arc<RoutingTable>>,
    pub(super) events: mpsc::Sender<LinkEvent>,
    live: Arc<AtomicUsize>,
}

impl Links {
    /// Begins to dial every controller. `events` is bounded by its maker; a slow driver slows the reading.
    ///
    /// # Errors
    /// When TLS cannot be configured.
    pub fn start(
        supervisor: &Supervisor,
        spec: LinkSpec,
        identity: &Identity,
        trust: &Trust,
        pulse: &Arc<Pulse>,
        events: &mpsc::Sender<LinkEvent>,
    ) -> Result<Self, TlsError> {
        let config = quic_client(identity, trust)?;
        let clock = pulse.clock();
        let renewal = Arc::new(Renewal::new(identity.clone(), clock));
        let live = Arc::new(AtomicUsize::new(0));
        let spec = Arc::new(spec);
        let link = |(number, address): (usize, &String)| {
            Arc::new(Link {
                number,
                address: address.clone(),
                spec: Arc::clone(&spec),
                clock,
                pulse: Arc::clone(pulse),
                renewal: Arc::clone(&renewal),
                outbox: Outbox::default(),
                routes: Mutex::default(),
                events: events.clone(),
                live: Arc::clone(&live),
            })
        };
        let links: Vec<_> = spec.controllers.iter().enumerate().map(link).collect();
        for link in &links {
            let (link, config) = (Arc::clone(link), config.clone());
            supervisor.spawn("controller link", Kind::Vital, |token| async move {
                link.keep_up(&config, &token).await;
                Ok(())
            });
        }
        Ok(Self { links, live, seq: AtomicU64::new(0), clock })
    }

    /// Tells every controller, repeated until each has acknowledged.
    pub fn tell(&self, event: &NodeEvent) {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        let now = self.clock.now();
        for link in &self.links {
            link.outbox.put(seq, event.clone(), now);
        }
    }

    /// Controllers that have welcomed this node and are still there.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// Why one attempt ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("not reached")]
    Dial(#[from] DialError),
    #[error("session ended")]
    Session(#[from] SessionError),
}

impl Link {
    async fn keep_up(&self, config: &quinn::ClientConfig, token: &CancellationToken) {
        let mut backoff = Backoff::new(REDIAL_INITIAL, REDIAL_MAX);
        let mut failed_count = 0_u32;
        while !token.is_cancelled() {
            let mut was_welcomed = false;
            let result = self.attempt(config, token, &mut was_welcomed).await;
            if was_welcomed {
                self.live.fetch_sub(1, Ordering::Relaxed);
                backoff.reset();
                failed_count = 0;
            }
            let Err(error) = result else {
                continue;
            };
            let reason = chain(&error);
            if was_welcomed || failed_count == 0 {
                warn!(controller = self.address, reason, "link down");
            } else {
                debug!(controller = self.address, reason, "link still down");
            }
            failed_count = failed_count.saturating_add(1);
            let down = LinkEvent::Down { address: self.address.clone(), reason };
            let is_refused = matches!(&error, LinkError::Session(error) if error.is_refusal());
            let wait = if is_refused { REDIAL_MAX } else { backoff.next_wait() };
            let pause = async {
                if was_welcomed && self.events.send(down).await.is_err() {
                    return;
                }
                tokio::time::sleep(wait).await;
            };
            // Cancel-safe: a lost `Down` matters to nobody once the program stops.
            tokio::select! {
                () = token.cancelled() => {}
                () = pause => {}
            }
        }
    }

    async fn attempt(
        &self,
        config: &quinn::ClientConfig,
        token: &CancellationToken,
        was_welcomed: &mut bool,
    ) -> Result<(), LinkError> {
        let Dialled { connection, endpoint } = tokio::select! {
            // Cancel-safe: an unfinished handshake is dropped.
            () = token.cancelled() => return Ok(()),
            dialled = dial(&self.address, config) => dialled?,
        };
        let result = session::run(self, &connection, token, || {
            *was_welcomed = true;
            self.live.fetch_add(1, Ordering::Relaxed);
            info!(controller = self.address, "link up");
        })
        .await;
        CloseCode::Done.close(&connection);
        if token.is_cancelled() {
            // Elapsed or not, the socket goes with the endpoint.
            let _ = tokio::time::timeout(CLOSE_WITHIN, endpoint.wait_idle()).await;
        }
        Ok(result?)
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
