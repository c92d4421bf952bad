//! Taking a snapshot, and removing those that are too old.

use std::time::Duration;

use bytes::Bytes;
use cic_common::id::Term;
use cic_common::objects::{Store, StoreError as UrlError, Stores, sha256_hex};

use super::name::{SnapshotName, too_old};
use super::snapshot::{self, FleetMark};
use crate::store::{Database, StateCopy, StoreError, StoredSnapshot, Write};

/// Below the prefix.
pub(super) const FOLDER: &str = "snapshots";

/// Some megabytes, as a checkpoint of an agent.
pub(super) const OBJECT_WITHIN: Duration = Duration::from_secs(60);

/// A listing or a removal: a few hundred bytes.
pub(super) const LIST_WITHIN: Duration = Duration::from_secs(10);

/// A fleet of a thousand nodes has some 5 MB; what is larger is not ours.
pub(super) const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// Where snapshots go, and of what.
#[derive(Debug, Clone)]
pub struct Backup {
    pub(super) store: Store,
    pub(super) database: Database,
    pub(super) fleet: FleetMark,
    keep: usize,
}

/// A snapshot that was written and read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    pub name: SnapshotName,
    pub row: StoredSnapshot,
    /// Why older ones could not be removed; the next one tries again.
    pub not_removed: Option<String>,
}

/// Why there is no new snapshot.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{url:?} {source}")]
    Url { url: String, source: UrlError },
    #[error("store cannot be read, or is another leader's now")]
    Store(#[from] StoreError),
    #[error("snapshot cannot be put into words")]
    Json(#[from] serde_json::Error),
    #[error("{object}: {cause}")]
    Object { object: String, cause: String },
}

impl Backup {
    /// Opens the object store at `url` with the credentials of this process's environment, without asking it anything.
    ///
    /// # Errors
    /// [`BackupError::Url`].
    pub fn open(url: &str, keep: usize, fleet: FleetMark, database: Database) -> Result<Self, BackupError> {
        let wrong = |source| BackupError::Url { url: url.to_owned(), source };
        let mut stores = Stores::open([url]).map_err(|(_, source)| wrong(source))?;
        let store =
            stores.all.pop().ok_or_else(|| wrong(UrlError::Unusable { cause: "is empty".to_owned() }))?;
        Ok(Self { store, database, fleet, keep })
    }

    /// Writes a snapshot of the store as it is now, reads it back, and removes those that are too old. None where the store
    /// holds nothing that could be lost: the snapshots of a fleet whose database is gone outlive the empty one in its place.
    ///
    /// # Errors
    /// [`BackupError`]. What there was before is kept.
    pub async fn take(&self) -> Result<Option<Saved>, BackupError> {
        let state = self.database.copy().await?;
        if state.is_empty() {
            return Ok(None);
        }
        let name = SnapshotName { term: state.term, taken_at_ms: state.taken_at_ms };
        let row = self.write(name, state).await?;
        self.database.store(name.term, &[Write::SaveSnapshot(row.clone())], &[]).await?;
        let not_removed = self.prune(name.term).await.err().map(|error| error.to_string());
        Ok(Some(Saved { name, row, not_removed }))
    }

    /// Names of the snapshots there are, oldest first; what others put there is not among them.
    ///
    /// # Errors
    /// When the object store does not say.
    pub async fn names(&self) -> Result<Vec<SnapshotName>, BackupError> {
        let listed = self.store.list(FOLDER, LIST_WITHIN).await;
        let listed = listed.map_err(|cause| BackupError::Object { object: self.place(), cause })?;
        let mut names: Vec<SnapshotName> = listed.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Whether the object store answers and the newest snapshot is not older than `age_max`, where there is anything to keep.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub async fn look(&self, age_max: Duration) -> Result<(), String> {
        self.names().await.map_err(|error| error.to_string())?;
        let age = self.database.snapshot_age().await.map_err(|error| error.to_string())?;
        match age {
            Some(age) if age <= age_max => Ok(()),
            Some(age) => Err(format!("the newest snapshot is {} s old", age.as_secs())),
            None => {
                let state = self.database.copy().await.map_err(|error| error.to_string())?;
                if state.is_empty() { Ok(()) } else { Err("there is no snapshot yet".to_owned()) }
            }
        }
    }

    /// The object's full name, for people.
    pub(super) fn object(&self, name: SnapshotName) -> String {
        format!("{}/{name}", self.place())
    }

    pub(super) fn place(&self) -> String {
        format!("{}/{FOLDER}", self.store.name.trim_end_matches('/'))
    }

    async fn write(&self, name: SnapshotName, state: StateCopy) -> Result<StoredSnapshot, BackupError> {
        let (nodes, operations) = (state.count("nodes"), state.count("operations"));
        let object = snapshot::write(&self.fleet, state)?;
        let fault = |cause| BackupError::Object { object: self.object(name), cause };
        let key = format!("{FOLDER}/{name}");
        self.store.put(&key, object.clone(), OBJECT_WITHIN).await.map_err(fault)?;
        let found = self.store.get(&key, OBJECT_BYTES_MAX, OBJECT_WITHIN).await.map_err(fault)?;
        if found.as_ref() != Some(&object) {
            return Err(fault("what was written does not read back".to_owned()));
        }
        Ok(row(self.object(name), name, &object, nodes, operations))
    }

    /// Removes what is too old, and the rows of whatever is not there.
    async fn prune(&self, term: Term) -> Result<(), BackupError> {
        let mut names = self.names().await?;
        for name in too_old(&names, term, self.keep) {
            let removed = self.store.delete(&format!("{FOLDER}/{name}"), LIST_WITHIN).await;
            removed.map_err(|cause| BackupError::Object { object: self.object(name), cause })?;
            names.retain(|kept| *kept != name);
        }
        let there: Vec<String> = names.iter().map(|name| self.object(*name)).collect();
        let known = self.database.snapshots().await?;
        let gone = known.into_iter().filter(|row| !there.contains(&row.url));
        let writes: Vec<Write> = gone.map(|row| Write::ForgetSnapshot { url: row.url }).collect();
        Ok(self.database.store(term, &writes, &[]).await?)
    }
}

fn row(url: String, name: SnapshotName, object: &Bytes, nodes: usize, operations: usize) -> StoredSnapshot {
    StoredSnapshot {
        taken_at_ms: name.taken_at_ms,
        term: name.term,
        url,
        bytes: object.len() as u64,
        checksum: sha256_hex(&[object]),
        node_count: nodes as u64,
        operation_count: operations as u64,
    }
}
