//! Writing checkpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cic_common::assignment::Assignment;
use cic_common::id::{Incarnation, NodeId};
use cic_common::time::{Clock, unix_ms};
use tokio::sync::watch;
use tracing::warn;

use super::object::seal;
use super::record::{Checkpoint, without_values};
use super::store::{Store, Stores};
use crate::core::{Occasion, Saved};

/// Checkpoints of one node that are kept. Design table: 10.
pub(super) const KEPT: usize = 10;

pub(super) const KIND: &str = "cic-checkpoint";

/// A few megabytes cross a region in well under a second; what takes longer finds the store in trouble.
const WRITE_WITHIN: Duration = Duration::from_secs(20);

const PRUNE_WITHIN: Duration = Duration::from_secs(20);

/// What a checkpoint is made of besides the core's own words.
pub trait Origin: Send + Sync + std::fmt::Debug {
    /// Requests of users that are under way, and the metrics page.
    fn look(&self) -> (Vec<crate::serve::edge::Unfinished>, String);
}

/// The checkpoints of one node. Clones share them.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    incarnation: Incarnation,
    stores: Stores,
    clock: Clock,
    origin: Box<dyn Origin>,
    /// Moment in the name of the last one, so that names go up also when two come in one millisecond.
    last_ms: AtomicU64,
    writing: watch::Sender<u32>,
    saved: AtomicU64,
    saved_at_ms: AtomicU64,
    failed: AtomicU64,
}

/// A checkpoint that is to be written. It is counted as under way until it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    checkpoint: Checkpoint,
    writing: Writing,
}

#[derive(Debug)]
struct Writing(Arc<Inner>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writing.send_modify(|count| *count -= 1);
    }
}

impl Checkpoints {
    #[must_use]
    pub fn new(
        node: NodeId,
        incarnation: Incarnation,
        stores: Stores,
        clock: Clock,
        origin: Box<dyn Origin>,
    ) -> Self {
        let inner = Inner {
            node,
            incarnation,
            stores,
            clock,
            origin,
            last_ms: AtomicU64::new(0),
            writing: watch::Sender::new(0),
            saved: AtomicU64::new(0),
            saved_at_ms: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn stores(&self) -> &Stores {
        &self.inner.stores
    }

    /// What is to be written, as it is now.
    #[must_use]
    pub fn look(
        &self,
        occasion: Occasion,
        assignment: Option<Assignment>,
        model_digest: Option<String>,
    ) -> Snapshot {
        let inner = &self.inner;
        inner.writing.send_modify(|count| *count += 1);
        let writing = Writing(Arc::clone(inner));
        let (requests, metrics) = inner.origin.look();
        let now = unix_ms();
        let before =
            inner.last_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now.max(last + 1)));
        let checkpoint = Checkpoint {
            node: inner.node.clone(),
            incarnation: inner.incarnation,
            taken_at_ms: now.max(before.unwrap_or(0) + 1),
            occasion,
            assignment: assignment.map(without_values),
            model_digest,
            requests,
            metrics,
        };
        Snapshot { checkpoint, writing }
    }

    /// Writes it to every store.
    ///
    /// # Errors
    /// When no store took it: each with its cause.
    pub async fn save(&self, snapshot: Snapshot) -> Result<Saved, String> {
        let Snapshot { checkpoint, writing } = snapshot;
        let since = self.inner.clock.now();
        let result = self.write(&checkpoint).await;
        let took_ms = u64::try_from(self.inner.clock.now().since(since).as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(_) => {
                self.inner.saved.fetch_add(1, Ordering::Relaxed);
                self.inner.saved_at_ms.store(unix_ms(), Ordering::Relaxed);
            }
            Err(_) => {
                self.inner.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(writing);
        let (bytes, missed) = result?;
        // A node that is being taken has better things to do.
        if checkpoint.occasion == Occasion::Periodic {
            self.prune().await;
        }
        let request_count = u32::try_from(checkpoint.requests.len()).unwrap_or(u32::MAX);
        Ok(Saved { bytes, request_count, took_ms, missed })
    }

    async fn write(&self, checkpoint: &Checkpoint) -> Result<(u64, Vec<String>), String> {
        let key = key_of(&checkpoint.node, checkpoint.taken_at_ms, checkpoint.incarnation);
        let object = seal(KIND, checkpoint).map_err(|error| error.to_string())?;
        let all = &self.inner.stores.all;
        let puts = all.iter().map(|store| put(store, &key, object.clone()));
        let missed: Vec<String> =
            futures_util::future::join_all(puts).await.into_iter().filter_map(Result::err).collect();
        if missed.len() == all.len() {
            return Err(missed.join("; "));
        }
        Ok((object.len() as u64, missed))
    }

    async fn prune(&self) {
        self.leave(&self.inner.node, KEPT).await;
    }

    /// Removes all of `node` but the newest: it is gone and has a successor.
    pub(super) async fn keep_newest(&self, node: &NodeId) {
        self.leave(node, 1).await;
    }

    async fn leave(&self, node: &NodeId, kept: usize) {
        let folder = folder_of(node);
        for store in &self.inner.stores.all {
            let pruned = async {
                let names = store.list(&folder, PRUNE_WITHIN).await?;
                for name in names.iter().rev().skip(kept) {
                    store.delete(&format!("{folder}/{name}"), PRUNE_WITHIN).await?;
                }
                Ok::<_, String>(())
            };
            if let Err(cause) = pruned.await {
                warn!(store = %store.name, cause, "old checkpoints are not removed");
            }
        }
    }

    /// Resolves when none is being written.
    pub async fn written(&self) {
        let mut writing = self.inner.writing.subscribe();
        let _ = writing.wait_for(|count| *count == 0).await;
    }

    /// In Prometheus's text format.
    #[must_use]
    pub fn text(&self) -> String {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let saved_at = Duration::from_millis(read(&self.inner.saved_at_ms)).as_secs_f64();
        format!(
            "cic_agent_checkpoints_total{{result=\"saved\"}} {}\n\
             cic_agent_checkpoints_total{{result=\"failed\"}} {}\n\
             cic_agent_checkpoint_last_timestamp_seconds {saved_at}\n",
            read(&self.inner.saved),
            read(&self.inner.failed),
        )
    }
}

async fn put(store: &Store, key: &str, object: Bytes) -> Result<(), String> {
    store.put(key, object, WRITE_WITHIN).await.map_err(|cause| format!("{}: {cause}", store.name))
}

pub(super) fn folder_of(node: &NodeId) -> String {
    format!("{node}/checkpoints")
}

/// Names sort by age.
pub(super) fn key_of(node: &NodeId, taken_at_ms: u64, incarnation: Incarnation) -> String {
    format!("{}/{taken_at_ms:015}-{incarnation}", folder_of(node))
}
