//! Answers of requests that were run again for a lost node, until their clients come for them.

use std::time::Duration;

use cic_common::id::NodeId;
use serde::{Deserialize, Serialize};

use super::object::{seal, sha256_hex, unseal};
use super::store::Stores;

const KIND: &str = "cic-answer";

const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A client that repeats a request waits no longer than this for the answer of the first time.
const FIND_WITHIN: Duration = Duration::from_millis(500);

const KEEP_WITHIN: Duration = Duration::from_secs(20);

/// A request as its client names it: nobody else can ask for its answer, nor with another request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Name of the client's API key; empty where the edge asks for none.
    pub client: String,
    pub idempotency_key: String,
    /// Of path and body.
    pub request_digest: String,
}

/// What a replica answered in a lost node's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    pub request_digest: String,
    pub request_id: String,
    pub status: u16,
    pub content_type: Option<String>,
    pub body: String,
    /// The node that ran it again.
    pub node: NodeId,
}

/// Where they are kept. Clones share them.
#[derive(Debug, Clone)]
pub struct Answers {
    stores: Stores,
}

impl Question {
    #[must_use]
    pub fn new(client: Option<&str>, idempotency_key: &str, path: &str, body: &[u8]) -> Self {
        Self {
            client: client.unwrap_or_default().to_owned(),
            idempotency_key: idempotency_key.to_owned(),
            request_digest: sha256_hex(&[path.as_bytes(), body]),
        }
    }

    fn key(&self) -> String {
        format!("answers/{}", sha256_hex(&[self.client.as_bytes(), self.idempotency_key.as_bytes()]))
    }
}

impl Answers {
    #[must_use]
    pub fn new(stores: Stores) -> Self {
        Self { stores }
    }

    /// The answer to `question`, where one is kept and can be had at once.
    pub async fn find(&self, question: &Question) -> Option<KeptAnswer> {
        let key = question.key();
        for store in &self.stores.all {
            if let Ok(Some(object)) = store.get(&key, ANSWER_BYTES_MAX, FIND_WITHIN).await
                && let Ok(kept) = unseal::<KeptAnswer>(KIND, &object)
                && kept.request_digest == question.request_digest
            {
                return Some(kept);
            }
        }
        None
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
