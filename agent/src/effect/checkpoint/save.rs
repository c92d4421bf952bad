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

use super::record::Checkpoint;
use crate::core::{Occasion, Saved};
use crate::serve::edge::Unfinished;
use cic_common::objects::{Store, Stores, seal};

/// Checkpoints of one node that are kept. Design table: 10.
pub(super) const KEPT: usize = 10;

pub(super) const KIND: &str = "cic-checkpoint";

/// A few megabytes cross a region in well under a second; what takes longer finds the store in trouble.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

/// Of one listing or removal: a few hundred bytes.
const PRUNE_WITHIN: Duration = Duration::from_secs(5);

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
    every: Duration,
    clock: Clock,
    /// Moment in the name of the last one, so that names go up also when two come in one millisecond.
    last_ms: AtomicU64,
    writing: watch::Sender<u32>,
    saved: AtomicU64,
    saved_at_ms: AtomicU64,
    failed: AtomicU64,
}

/// A checkpoint that is to be written. It is counted as under way until it is dropped.
pub struct Snapshot {
    /// Without its requests.
    checkpoint: Checkpoint,
    requests: Box<dyn FnOnce() -> Vec<Unfinished> + Send>,
    writing: Writing,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("occasion", &self.checkpoint.occasion).finish_non_exhaustive()
    }
}

struct Writing(Arc<Inner>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writing.send_modify(|count| *count -= 1);
    }
}

impl Checkpoints {
    /// Of `node`, in every store, one each `every` and more on occasion.
    #[must_use]
    pub fn new(
        node: NodeId,
        incarnation: Incarnation,
        stores: Stores,
        every: Duration,
        clock: Clock,
    ) -> Self {
        let inner = Inner {
            node,
            incarnation,
            stores,
            every,
            clock,
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

    /// What is to be written, as it is now; `requests` are written out when it is saved.
    #[must_use]
    pub fn look(
        &self,
        occasion: Occasion,
        (assignment, model_digest): (Option<Assignment>, Option<String>),
        metrics: String,
        requests: impl FnOnce() -> Vec<Unfinished> + Send + 'static,
    ) -> Snapshot {
        let inner = &self.inner;
        inner.writing.send_modify(|count| *count += 1);
        let now = unix_ms();
        let next = |last: u64| now.max(last + 1);
        let before =
            inner.last_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        let checkpoint = Checkpoint {
            node: inner.node.clone(),
            incarnation: inner.incarnation,
            taken_at_ms: before.map_or(now, next),
            occasion,
            every_ms: u64::try_from(inner.every.as_millis()).unwrap_or(u64::MAX),
            assignment,
            model_digest,
            requests: Vec::new(),
            metrics,
        };
        Snapshot { checkpoint, requests: Box::new(requests), writing: Writing(Arc::clone(inner)) }
    }

    /// Writes it to every store.
    ///
    /// # Errors
    /// When no store took it: each with its cause.
    pub async fn save(&self, snapshot: Snapshot) -> Result<Saved, String> {
        let Snapshot { mut checkpoint, requests, writing } = snapshot;
        let since = self.inner.clock.now();
        let (node, occasion) = (checkpoint.node.clone(), checkpoint.occasion);
        let name = name_of(checkpoint.incarnation, checkpoint.taken_at_ms);
        let sealed = tokio::task::spawn_blocking(move || {
            checkpoint.requests = requests();
            let object = seal(KIND, &checkpoint).map_err(|error| error.to_string());
            object.map(|object| (object, checkpoint.requests.len()))
        });
        let sealed = sealed.await.map_err(|error| error.to_string()).flatten();
        let result = match sealed {
            Ok((object, request_count)) => {
                let written = self.write(&format!("{}/{name}", folder_of(&node)), &object).await;
                written.map(|missed| (object.len() as u64, request_count, missed))
            }
            Err(cause) => Err(cause),
        };
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
        let (bytes, request_count, missed) = result?;
        let request_count = u32::try_from(request_count).unwrap_or(u32::MAX);
        Ok(Saved { occasion, bytes, request_count, took_ms, missed })
    }

    async fn write(&self, key: &str, object: &Bytes) -> Result<Vec<String>, String> {
        let all = &self.inner.stores.all;
        let puts = all.iter().map(|store| put(store, key, object.clone()));
        let missed: Vec<String> =
            futures_util::future::join_all(puts).await.into_iter().filter_map(Result::err).collect();
        if missed.len() == all.len() {
            return Err(missed.join("; "));
        }
        Ok(missed)
    }

    /// Removes all but this node's newest ones.
    pub async fn prune(&self) {
        let is_old = |names: &[String], name: &String| names.iter().rev().take(KEPT).all(|kept| kept != name);
        self.remove(&self.inner.node, is_old).await;
    }

    /// Removes what `node` wrote before `name`: it is gone, and that one was restored.
    pub(super) async fn keep_from(&self, node: &NodeId, name: &str) {
        self.remove(node, |_, other| other.as_str() < name).await;
    }

    async fn remove(&self, node: &NodeId, is_old: impl Fn(&[String], &String) -> bool) {
        let folder = folder_of(node);
        for store in &self.inner.stores.all {
            let removed = async {
                let names = store.list(&folder, PRUNE_WITHIN).await?;
                for name in names.iter().filter(|name| is_old(&names, name)) {
                    store.delete(&format!("{folder}/{name}"), PRUNE_WITHIN).await?;
                }
                Ok::<_, String>(())
            };
            if let Err(cause) = removed.await {
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

/// Names sort by age, also where a clock was set back between two runs of the agent.
pub(super) fn name_of(incarnation: Incarnation, taken_at_ms: u64) -> String {
    format!("{:010}-{taken_at_ms:013}", incarnation.0)
}
