//! Which peers are presumed dead while somebody waits for them.
//!
//! A completion can rightly take minutes, so that waiting long says nothing; a machine that was frozen or cut off
//! closes no connection. Once a second every peer with requests in flight is asked something any live agent
//! answers at once, on a new connection. This needs no controller. Only silence counts: a peer that refuses or closes
//! is there, and our own lack of descriptors says nothing about anybody. One that is presumed dead is asked on until
//! it answers, so that new requests pass it over instead of waiting for it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cic_common::id::NodeId;
use cic_common::supervise::TaskResult;
use http_body_util::Full;
use hyper::{Request, header};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::pool::{Pool, SendError, Upstream};
use super::relay::Cut;

/// Between two questions to one peer.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Any answer within this is a sign of life; a loaded machine's handshake takes tens of milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Unanswered questions in a row that make a peer presumed dead: one packet may be lost, a machine may pause.
const MISSES_MAX: u32 = 2;

/// Unanswered questions after which a peer is forgotten: by then its replacement is in the table. A minute and more.
const FORGOTTEN_AFTER: u32 = 60;

/// What the question asks for. That it is refused is an answer too.
const QUESTION: &str = "/healthz";

/// Peers that are waited for, and those of them that are presumed dead. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Lifeline {
    watched: Arc<Mutex<BTreeMap<Upstream, u32>>>,
    dead: Arc<watch::Sender<BTreeSet<NodeId>>>,
}

/// One request that waits for a peer.
#[derive(Debug)]
pub(super) struct Waiting {
    upstream: Upstream,
    lifeline: Lifeline,
}

impl Lifeline {
    pub(super) fn new() -> Self {
        Self { watched: Arc::default(), dead: Arc::new(watch::Sender::new(BTreeSet::new())) }
    }

    /// Has `upstream` asked for signs of life as long as the result lives. The own engine is watched elsewhere.
    pub(super) fn wait_for(&self, upstream: &Upstream) -> Waiting {
        *self.lock().entry(upstream.clone()).or_default() += 1;
        Waiting { upstream: upstream.clone(), lifeline: self.clone() }
    }

    /// Asks until cancelled.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub(super) async fn run(self, pool: Pool, token: CancellationToken) -> TaskResult {
        let mut misses: BTreeMap<Upstream, u32> = BTreeMap::new();
        let mut turns = tokio::time::interval(ASK_EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Cancel safe: a tick that is dropped comes again.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = turns.tick() => {}
            }
            let watched: BTreeSet<Upstream> =
                self.lock().keys().filter(|one| matches!(one, Upstream::Peer { .. })).cloned().collect();
            misses
                .retain(|one, count| watched.contains(one) || (MISSES_MAX..FORGOTTEN_AFTER).contains(count));
            let asked: BTreeSet<Upstream> = watched.into_iter().chain(misses.keys().cloned()).collect();
            let answers = asked.iter().map(|upstream| is_silent(&pool, upstream));
            for (upstream, is_silent) in asked.iter().zip(futures_util::future::join_all(answers).await) {
                let count = misses.entry(upstream.clone()).or_default();
                *count = if is_silent { count.saturating_add(1) } else { 0 };
                if *count == MISSES_MAX {
                    warn!(node = %upstream.node(), "replica is presumed dead: it answers nothing");
                }
            }
            let dead = misses.iter().filter(|(_, count)| **count >= MISSES_MAX);
            self.publish(dead.map(|(upstream, _)| upstream.node().clone()).collect());
        }
    }

    /// Whether it is presumed dead now.
    pub(super) fn is_dead(&self, upstream: &Upstream) -> bool {
        matches!(upstream, Upstream::Peer { node, .. } if self.dead.borrow().contains(node))
    }

    fn publish(&self, dead: BTreeSet<NodeId>) {
        self.dead.send_if_modified(|current| {
            let is_new = *current != dead;
            if is_new {
                info!(?dead, "replicas presumed dead");
                *current = dead;
            }
            is_new
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Upstream, u32>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Resolves when the peer is presumed dead. Keeps the peer asked while it is alive.
    pub(super) fn until_dead(self) -> Cut {
        let mut dead = self.lifeline.dead.subscribe();
        Cut::new(async move {
            let node = self.upstream.node();
            if dead.wait_for(|dead| dead.contains(node)).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut watched = self.lifeline.lock();
        if let Some(count) = watched.get_mut(&self.upstream) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.upstream);
            }
        }
    }
}

/// Whether nothing at all came back. An answer of any kind, a refusal or a close is a sign of life.
pub(super) async fn is_silent(pool: &Pool, upstream: &Upstream) -> bool {
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = hyper::Uri::from_static(QUESTION);
    request.headers_mut().insert(header::HOST, upstream.host());
    match timeout(ANSWER_DEADLINE, pool.send_afresh(upstream, request)).await {
        Err(_) | Ok(Err(SendError::ConnectLate)) => true,
        Ok(Err(SendError::Connect(error))) if is_unreachable(&error) => true,
        Ok(Ok(_) | Err(SendError::Connect(_) | SendError::NoIdentity | SendError::Broken(_))) => false,
    }
}

/// Nobody answered the kernel's own questions for the way there.
fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut)
}
