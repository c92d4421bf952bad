//! Performs the core's polls, bounded, and watches the warm connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::supervise::{Kind, Supervisor, TaskHandle, TaskResult};
use cic_common::time::Clock;
use cic_common::tls::config::{TlsError, tcp_client};
use cic_common::tls::{Identity, Trust};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::ask::{self, Answer};
use super::connection::Connection;
use crate::core::{Event, PollFault, Polled};

/// Routine polls at once. Each takes a round trip; 64 over 10 s are tens of thousands of nodes.
const ROUTINE_MAX: usize = 64;

/// Urgent polls at once: a whole zone may turn suspect in one moment, and each may take two seconds.
const URGENT_MAX: usize = 256;

/// Those of nodes that did not answer the last one, at once, where the places for urgent ones are taken by more than half: a
/// zone that stays silent is asked again and again, and must not keep those waiting about which nothing is decided yet.
const AGAIN_MAX: usize = 64;

/// Urgent polls that run or wait for their turn. Beyond it the core is told that a node was not asked.
const URGENT_WAITING_MAX: usize = 4096;

/// Routine polls are delayed by up to this much, so that nodes that came up together do not stay in step.
const SPREAD: Duration = Duration::from_secs(1);

/// One poll under way and one asked for; the core asks again anyway.
const ASKED_MAX: usize = 1;

/// What polls came to, for `/metrics`.
#[derive(Debug, Default)]
pub struct PollCounts {
    pub routine: AtomicU64,
    pub urgent: AtomicU64,
    /// Urgent ones for which there was no room.
    pub unasked: AtomicU64,
    pub failed: AtomicU64,
    pub channels_lost: AtomicU64,
    /// Most urgent polls that ever ran or waited at once.
    pub urgent_waiting_max: AtomicUsize,
}

/// Asks agents for heartbeats. Clones share everything.
#[derive(Debug, Clone)]
pub struct Poller {
    shared: Arc<Shared>,
    supervisor: Supervisor,
}

#[derive(Debug)]
struct Shared {
    tls: Arc<rustls::ClientConfig>,
    clock: Clock,
    core: mpsc::Sender<Event>,
    routine: Semaphore,
    urgent: Semaphore,
    again: Semaphore,
    /// Nodes that did not answer their last urgent poll.
    unanswered: Mutex<BTreeSet<NodeId>>,
    urgent_waiting: Arc<Semaphore>,
    spread: Duration,
    counts: PollCounts,
    /// One entry a node that is polled; the core forgets a node when its VM is gone.
    nodes: Mutex<BTreeMap<NodeId, Watched>>,
}

#[derive(Debug)]
struct Watched {
    asked: mpsc::Sender<Asked>,
    task: TaskHandle,
}

/// Where a node is asked, and what it is given.
#[derive(Debug)]
struct Asked {
    address: String,
    within: Duration,
}

impl Poller {
    /// Answers go to `core`.
    ///
    /// # Errors
    /// When TLS cannot be configured.
    pub fn start(
        supervisor: &Supervisor,
        identity: &Identity,
        trust: &Trust,
        core: mpsc::Sender<Event>,
    ) -> Result<Self, TlsError> {
        let shared = Shared {
            tls: tcp_client(identity, trust)?,
            clock: Clock::start(),
            core,
            routine: Semaphore::new(ROUTINE_MAX),
            urgent: Semaphore::new(URGENT_MAX),
            again: Semaphore::new(AGAIN_MAX),
            unanswered: Mutex::default(),
            urgent_waiting: Arc::new(Semaphore::new(URGENT_WAITING_MAX)),
            spread: SPREAD,
            counts: PollCounts::default(),
            nodes: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), supervisor: supervisor.clone() })
    }

    /// Polls `node` at `address` and answers with one `Polled`, except a routine poll that was asked for while
    /// another is waiting: that one's answer serves both.
    pub fn poll(&self, node: NodeId, address: String, is_urgent: bool, within: Duration) {
        if is_urgent {
            self.poll_urgently(node, address, within);
        } else {
            self.poll_in_turn(node, Asked { address, within });
        }
    }

    /// Ends the watch over a node that is gone for good.
    pub fn forget(&self, node: &NodeId) {
        let watched = self.shared.nodes().remove(node);
        self.shared.unanswered().remove(node);
        if let Some(watched) = watched {
            watched.task.cancel();
        }
    }

    /// Urgent polls that may run or wait at once.
    #[must_use]
    pub fn urgent_bound(&self) -> usize {
        URGENT_WAITING_MAX
    }

    #[must_use]
    pub fn counts(&self) -> &PollCounts {
        &self.shared.counts
    }

    fn poll_in_turn(&self, node: NodeId, asked: Asked) {
        let mut nodes = self.shared.nodes();
        let watched = nodes.entry(node.clone()).or_insert_with(|| {
            let (sender, queue) = mpsc::channel(ASKED_MAX);
            let shared = Arc::clone(&self.shared);
            let task = self.supervisor.spawn("node poll", Kind::Passing, |token| {
                Watch { shared, node, address: String::new(), warm: None }.run(queue, token)
            });
            Watched { asked: sender, task }
        });
        // Full: one is waiting already.
        let _ = watched.asked.try_send(asked);
    }

    fn poll_urgently(&self, node: NodeId, address: String, within: Duration) {
        let shared = Arc::clone(&self.shared);
        let waiting = Arc::clone(&shared.urgent_waiting).try_acquire_owned();
        let count = URGENT_WAITING_MAX - shared.urgent_waiting.available_permits();
        shared.counts.urgent_waiting_max.fetch_max(count, Ordering::Relaxed);
        self.supervisor.spawn("urgent poll", Kind::Passing, |token| async move {
            let is_asked = waiting.is_ok();
            let asked = async {
                if !is_asked {
                    return Err(PollFault::NotAsked);
                }
                let is_again = shared.unanswered().contains(&node);
                let is_full = shared.urgent.available_permits() < URGENT_MAX / 2;
                let turns = if is_again && is_full { &shared.again } else { &shared.urgent };
                // The semaphores are never closed.
                let _turn = turns.acquire().await;
                ask::urgent(&node, &address, &shared.tls, shared.clock, within).await
            };
            // Cancel-safe: an answer is of no use once the program stops.
            let result = tokio::select! {
                () = token.cancelled() => return Ok(()),
                result = asked => result,
            };
            let counted = if is_asked { &shared.counts.urgent } else { &shared.counts.unasked };
            counted.fetch_add(1, Ordering::Relaxed);
            if is_asked && result.is_err() {
                let nodes = shared.nodes();
                // One that was forgotten meanwhile is not remembered again.
                if nodes.contains_key(&node) {
                    shared.unanswered().insert(node.clone());
                }
            }
            shared.answer(node.clone(), true, result).await;
            Ok(())
        });
    }
}

impl Shared {
    async fn answer(&self, node: NodeId, urgent: bool, result: Result<Answer, PollFault>) {
        if result.is_ok() {
            self.unanswered().remove(&node);
        }
        if let Err(fault) = result
            && fault != PollFault::NotAsked
        {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
            debug!(%node, %fault, urgent, "poll failed");
        }
        let trip = result.as_ref().map_or(Duration::ZERO, |(_, trip)| *trip);
        let polled = Polled { node, urgent, trip, result: result.map(|(heartbeat, _)| heartbeat) };
        // Fails only when the driver has gone, and with it all who would care.
        let _ = self.core.send(Event::Polled(polled)).await;
    }

    fn unanswered(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Watched>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of one node.
struct Watch {
    shared: Arc<Shared>,
    node: NodeId,
    address: String,
    warm: Option<Connection>,
}

impl Watch {
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>, token: CancellationToken) -> TaskResult {
        // The first poll opens the warm connection and goes at once; later ones are spread.
        let mut is_first = true;
        loop {
            // Cancel-safe: a queue loses nothing, and the connection is watched on in the next turn.
            let asked = tokio::select! {
                () = token.cancelled() => return Ok(()),
                asked = asked.recv() => match asked {
                    Some(asked) => asked,
                    None => return Ok(()),
                },
                () = closed(&mut self.warm) => {
                    self.lost().await;
                    continue;
                }
            };
            let poll = self.poll(asked, std::mem::take(&mut is_first));
            // Cancel-safe: an answer is of no use once the program stops.
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = poll => {}
            }
        }
    }

    async fn poll(&mut self, asked: Asked, is_first: bool) {
        let Asked { address, within } = asked;
        if self.address != address {
            self.warm = None;
            self.address = address;
        }
        if !is_first {
            self.wait_turn().await;
        }
        // The semaphore is never closed.
        let shared = Arc::clone(&self.shared);
        let turn = shared.routine.acquire().await;
        let (tls, clock) = (&shared.tls, shared.clock);
        let result = ask::routine(&mut self.warm, &self.node, &self.address, tls, clock, within).await;
        drop(turn);
        shared.counts.routine.fetch_add(1, Ordering::Relaxed);
        shared.answer(self.node.clone(), false, result).await;
    }

    /// Waits a random part of the spread; a connection that closes meanwhile is noticed all the same.
    async fn wait_turn(&mut self) {
        let wait = tokio::time::sleep(self.shared.spread.mul_f64(fastrand::f64()));
        tokio::pin!(wait);
        // Cancel-safe: the wait goes on, and the connection is watched on elsewhere.
        tokio::select! {
            () = &mut wait => return,
            () = closed(&mut self.warm) => self.lost().await,
        }
        wait.await;
    }

    async fn lost(&mut self) {
        self.warm = None;
        self.shared.counts.channels_lost.fetch_add(1, Ordering::Relaxed);
        // Fails only when the driver has gone.
        let _ = self.shared.core.send(Event::PollChannelLost { node: self.node.clone() }).await;
    }
}

/// Resolves when the warm connection closes; never without one.
async fn closed(warm: &mut Option<Connection>) {
    match warm {
        Some(connection) => connection.closed().await,
        None => std::future::pending().await,
    }
}
