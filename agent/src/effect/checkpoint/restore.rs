//! Reading checkpoints back.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::objects::{Store, Stores, unseal};
use cic_common::time::unix_ms;

use super::record::Checkpoint;
use super::save::{KEPT, KIND, folder_of};

/// A few hundred bytes.
const LIST_WITHIN: Duration = Duration::from_secs(10);

/// As a write: tens of megabytes at most.
const READ_WITHIN: Duration = Duration::from_secs(60);

/// Bodies of 16 MiB, whatever is in them, tokens of ten, and the metrics, as JSON.
const OBJECT_BYTES_MAX: u64 = 128 << 20;

/// The newest checkpoint of a node that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub checkpoint: Checkpoint,
    /// Newer ones, and copies of this one, that cannot: each with its cause.
    pub skipped: Vec<String>,
}

impl Found {
    /// Since it was taken, as far as two wall clocks can tell.
    #[must_use]
    pub fn age_ms(&self) -> u64 {
        unix_ms().saturating_sub(self.checkpoint.taken_at_ms)
    }
}

/// One object among a node's checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub store: String,
    pub name: String,
    /// The checkpoint, or why it cannot be used.
    pub content: Result<Checkpoint, String>,
}

/// Names of the checkpoints of `node` in any store, oldest first, and the stores that did not say.
pub(super) async fn names_of(stores: &Stores, node: &NodeId) -> (Vec<String>, Vec<String>) {
    let (found, missed) = names(stores, node).await;
    (found.into_keys().collect(), missed)
}

/// The newest checkpoint of `node` that verifies, in whichever store it is.
///
/// # Errors
/// When there is none: what was found instead.
pub async fn newest(stores: &Stores, node: &NodeId) -> Result<Found, String> {
    let (found, mut skipped) = names(stores, node).await;
    for (name, holders) in found.iter().rev().take(KEPT * 2) {
        for store in holders {
            match read(store, node, name).await {
                Ok(checkpoint) => return Ok(Found { name: name.clone(), checkpoint, skipped }),
                Err(cause) => skipped.push(format!("{name} in {}: {cause}", store.name)),
            }
        }
    }
    Err(match skipped.as_slice() {
        [] => format!("there is no checkpoint of {node}"),
        skipped => skipped.join("; "),
    })
}

/// Everything there is of `node`, newest first, and the stores that did not say.
pub async fn all_of(stores: &Stores, node: &NodeId) -> (Vec<Held>, Vec<String>) {
    let (found, missed) = names(stores, node).await;
    let mut held = Vec::new();
    for (name, holders) in found.iter().rev() {
        for store in holders {
            let content = read(store, node, name).await;
            held.push(Held { store: store.name.to_string(), name: name.clone(), content });
        }
    }
    (held, missed)
}

async fn names<'a>(stores: &'a Stores, node: &NodeId) -> (BTreeMap<String, Vec<&'a Store>>, Vec<String>) {
    let folder = folder_of(node);
    let (mut names, mut missed) = (BTreeMap::<_, Vec<&Store>>::new(), Vec::new());
    let lists = stores.all.iter().map(|store| store.list(&folder, LIST_WITHIN));
    for (store, list) in stores.all.iter().zip(futures_util::future::join_all(lists).await) {
        match list {
            Ok(list) => list.into_iter().for_each(|name| names.entry(name).or_default().push(store)),
            Err(cause) => missed.push(format!("{} cannot be listed: {cause}", store.name)),
        }
    }
    (names, missed)
}

async fn read(store: &Store, node: &NodeId, name: &str) -> Result<Checkpoint, String> {
    let key = format!("{}/{name}", folder_of(node));
    let object = store.get(&key, OBJECT_BYTES_MAX, READ_WITHIN).await?.ok_or("it is gone")?;
    let unsealed = tokio::task::spawn_blocking(move || unseal::<Checkpoint>(KIND, &object)).await;
    let checkpoint = unsealed.map_err(|error| error.to_string())?.map_err(|fault| fault.to_string())?;
    if checkpoint.node != *node {
        return Err(format!("it is of {}", checkpoint.node));
    }
    Ok(checkpoint)
}
