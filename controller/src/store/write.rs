//! One change to be stored, and how a batch of them becomes one transaction.

use cic_common::id::{NodeId, Term};
use sqlx::AnyConnection;
use sqlx::Connection as _;
use tokio::sync::oneshot;

use super::database::{Database, StoreError, signed};
use super::events::{self, PendingEvent};
use super::lease::{Fence, fence};
use super::loan::{Loan, within};
use super::snapshots::{self, StoredSnapshot};
use super::sync;
use crate::core::{Deployment, NodeRecord, Operation, SyncRecord};

/// One change to be stored.
#[derive(Debug)]
pub enum Write {
    /// A new operation, or a new state of one. The core is told `Recorded` when `is_new`.
    Operation {
        operation: Operation,
        is_new: bool,
    },
    SaveNode(NodeRecord),
    ForgetNode(NodeId),
    SaveDeployment(Deployment),
    /// For audit.
    Certificate {
        serial: String,
        node: NodeId,
        expires_at_ms: u64,
    },
    SaveSync(SyncRecord),
    SaveSnapshot(StoredSnapshot),
    /// Of an object that is not there any more.
    ForgetSnapshot {
        url: String,
    },
    /// Answered once everything queued before it is stored.
    Barrier(oneshot::Sender<()>),
}

impl Database {
    /// Stores `writes` and `events` in order, all or none, if `term` is still the newest. Repeating a batch changes
    /// nothing.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when another term has begun: then nothing was stored, nor will be. Otherwise when the
    /// transaction fails or does not answer; it may have been committed all the same.
    pub async fn store(
        &self,
        term: Term,
        writes: &[Write],
        events: &[PendingEvent],
    ) -> Result<(), StoreError> {
        match within(self.transact(term, writes, events)).await? {
            Fence::Holds { .. } => Ok(()),
            Fence::Over { newest } => Err(StoreError::Fenced { term, newest }),
        }
    }

    async fn transact(
        &self,
        term: Term,
        writes: &[Write],
        events: &[PendingEvent],
    ) -> Result<Fence, sqlx::Error> {
        let mut loan = Loan::take(&self.pool).await?;
        let mut transaction = loan.connection().begin().await?;
        let fence = fence(&mut transaction, term).await?;
        match fence {
            Fence::Holds { now_ms } => {
                for write in writes {
                    apply(&mut transaction, write, now_ms).await?;
                }
                events::append(&mut transaction, term, events).await?;
                transaction.commit().await?;
            }
            Fence::Over { .. } => transaction.rollback().await?,
        }
        loan.give_back();
        Ok(fence)
    }
}

/// `now_ms` is the database's time.
async fn apply(connection: &mut AnyConnection, write: &Write, now_ms: i64) -> Result<(), sqlx::Error> {
    let query = match write {
        Write::Operation { operation, is_new: _ } => sqlx::query(
            "INSERT INTO operations (id, node, kind, state, is_open, body, recorded_at_ms, updated_at_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, is_open = excluded.is_open,
                 body = excluded.body, updated_at_ms = excluded.updated_at_ms",
        )
        .bind(signed(operation.id.0))
        .bind(operation.node.as_str())
        .bind(operation.kind.as_str())
        .bind(operation.state.as_str())
        .bind(i64::from(operation.state.is_open()))
        .bind(json(operation)?)
        .bind(now_ms),
        Write::SaveNode(node) => sqlx::query(
            "INSERT INTO nodes (node, body, updated_at_ms) VALUES ($1, $2, $3)
             ON CONFLICT (node) DO UPDATE SET body = excluded.body, updated_at_ms = excluded.updated_at_ms",
        )
        .bind(node.node.as_str())
        .bind(json(node)?)
        .bind(now_ms),
        Write::ForgetNode(node) => sqlx::query("DELETE FROM nodes WHERE node = $1").bind(node.as_str()),
        Write::SaveDeployment(deployment) => sqlx::query(
            "INSERT INTO deployments (name, body, updated_at_ms) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_at_ms = excluded.updated_at_ms",
        )
        .bind(deployment.name.as_str())
        .bind(json(deployment)?)
        .bind(now_ms),
        Write::Certificate { serial, node, expires_at_ms } => sqlx::query(
            "INSERT INTO certificates (serial, node, issued_at_ms, expires_at_ms) VALUES ($1, $2, $3, $4)
             ON CONFLICT (serial) DO NOTHING",
        )
        .bind(serial.as_str())
        .bind(node.as_str())
        .bind(now_ms)
        .bind(signed(*expires_at_ms)),
        Write::SaveSync(record) => return sync::save(connection, record, now_ms).await,
        Write::SaveSnapshot(snapshot) => return snapshots::save(connection, snapshot).await,
        Write::ForgetSnapshot { url } => return snapshots::forget(connection, url).await,
        Write::Barrier(_) => return Ok(()),
    };
    query.execute(connection).await.map(|_| ())
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}
