//! Answers of requests that were run again for a lost node, until their clients come for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::{Clock, unix_ms};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tracing::debug;

use cic_common::objects::{Store, Stores, seal, sha256_hex, unseal};

const KIND: &str = "cic-answer";

/// An answer of 32 MiB in JSON, whatever is in it.
const OBJECT_BYTES_MAX: u64 = 200 << 20;

/// A client that repeats a request waits no longer than this for the answer of the first time.
const FIND_WITHIN: Duration = Duration::from_millis(500);

const KEEP_WITHIN: Duration = Duration::from_secs(30);

/// Questions under way at once; beyond them requests go their way unasked.
const FINDING_MAX: usize = 32;

/// A store that did not answer is not asked for so long.
const REST: Duration = Duration::from_secs(30);

/// Older answers are given to nobody.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A request as its client names it: nobody else can ask for its answer, nor with another request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Name of the client's API key; `None` where the edge asks for none.
    pub client: Option<String>,
    pub idempotency_key: String,
    /// Of path with query, and body.
    pub request_digest: String,
}

/// What a replica answered in a lost node's place, with status 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    pub request_digest: String,
    pub request_id: String,
    pub kept_at_ms: u64,
    pub content_type: Option<String>,
    pub body: String,
    /// The node that ran it again.
    pub node: NodeId,
}

/// Where they are kept. Clones share them.
#[derive(Debug, Clone)]
pub struct Answers {
    stores: Stores,
    finding: Arc<Semaphore>,
    clock: Clock,
    /// Milliseconds of the clock until which each store is not asked.
    resting: Arc<[AtomicU64]>,
}

impl Question {
    #[must_use]
    pub fn new(client: Option<&str>, idempotency_key: &str, path: &str, body: &[u8]) -> Self {
        Self {
            client: client.map(str::to_owned),
            idempotency_key: idempotency_key.to_owned(),
            request_digest: sha256_hex(&[path.as_bytes(), body]),
        }
    }

    fn key(&self) -> String {
        let key = self.idempotency_key.as_bytes();
        let digest = match &self.client {
            Some(client) => sha256_hex(&[b"client", client.as_bytes(), key]),
            None => sha256_hex(&[b"nobody", key]),
        };
        format!("answers/{digest}")
    }
}

impl Answers {
    #[must_use]
    pub fn new(stores: Stores, clock: Clock) -> Self {
        let resting = stores.all.iter().map(|_| AtomicU64::new(0)).collect();
        Self { stores, finding: Arc::new(Semaphore::new(FINDING_MAX)), clock, resting }
    }

    /// The answer to `question`, where one is kept and can be had at once.
    pub async fn find(&self, question: &Question) -> Option<KeptAnswer> {
        let _permit = self.finding.try_acquire().ok()?;
        let key = question.key();
        let looks = self.stores.all.iter().zip(self.resting.iter());
        let mut looks: futures_util::stream::FuturesUnordered<_> =
            looks.map(|(store, resting)| self.look(store, resting, &key)).collect();
        while let Some(found) = looks.next().await {
            let is_asked_for = |kept: &KeptAnswer| {
                let age = Duration::from_millis(unix_ms().saturating_sub(kept.kept_at_ms));
                kept.request_digest == question.request_digest && age < AGE_MAX
            };
            if let Some(kept) = found.filter(is_asked_for) {
                return Some(kept);
            }
        }
        None
    }

    async fn look(&self, store: &Store, resting: &AtomicU64, key: &str) -> Option<KeptAnswer> {
        let now = self.clock.now().as_millis();
        if now < resting.load(Ordering::Relaxed) {
            return None;
        }
        match store.get(key, OBJECT_BYTES_MAX, FIND_WITHIN).await {
            Ok(found) => unseal(KIND, &found?).ok(),
            Err(cause) => {
                debug!(store = %store.name, cause, "kept answers cannot be read");
                let rest = u64::try_from(REST.as_millis()).unwrap_or(u64::MAX);
                resting.store(now.saturating_add(rest), Ordering::Relaxed);
                None
            }
        }
    }

    /// Keeps `answer` for whoever repeats `question`.
    ///
    /// # Errors
    /// When no store took it.
    pub async fn keep(&self, question: &Question, answer: &KeptAnswer) -> Result<(), String> {
        let object = seal(KIND, answer).map_err(|error| error.to_string())?;
        let key = question.key();
        let puts = self.stores.all.iter().map(|store| store.put(&key, object.clone(), KEEP_WITHIN));
        let results = futures_util::future::join_all(puts).await;
        if results.iter().any(Result::is_ok) {
            return Ok(());
        }
        Err(results.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("; "))
    }
}
