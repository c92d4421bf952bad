//! One change to be stored, and how a batch of them becomes one transaction.

use cic_common::id::{NodeId, Term};
use cic_common::time::unix_ms;
use sqlx::SqliteConnection;
use tokio::sync::oneshot;

use super::database::{Database, StoreError, signed, within};
use super::events::{self, PendingEvent};
use crate::core::{Deployment, NodeRecord, Operation};

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
    /// Answered once everything queued before it is stored.
    Barrier(oneshot::Sender<()>),
}

impl Database {
    /// Stores `writes` and `events` in order, all or none. Repeating a batch changes nothing.
    ///
    /// # Errors
    /// When the transaction fails or does not answer; it may have been committed all the same.
    pub async fn store(
        &self,
        term: Term,
        writes: &[Write],
        events: &[PendingEvent],
    ) -> Result<(), StoreError> {
        within(self.transact(term, writes, events)).await
    }

    async fn transact(
        &self,
        term: Term,
        writes: &[Write],
        events: &[PendingEvent],
    ) -> Result<(), sqlx::Error> {
        let now_ms = signed(unix_ms());
        let mut transaction = self.pool.begin().await?;
        for write in writes {
            apply(&mut transaction, write, now_ms).await?;
        }
        events::append(&mut transaction, term, events).await?;
        transaction.commit().await
    }
}

async fn apply(connection: &mut SqliteConnection, write: &Write, now_ms: i64) -> Result<(), sqlx::Error> {
    let query = match write {
        Write::Operation { operation, is_new: _ } => sqlx::query(
            "INSERT INTO operations (id, node, kind, state, is_open, body, recorded_at_ms, updated_at_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, is_open = excluded.is_open,
                 body = excluded.body, updated_at_ms = excluded.updated_at_ms",
        )
        .bind(signed(operation.id.0))
        .bind(operation.node.as_str())
        .bind(operation.kind.as_str())
        .bind(operation.state.as_str())
        .bind(operation.state.is_open())
        .bind(json(operation)?)
        .bind(now_ms),
        Write::SaveNode(node) => sqlx::query(
            "INSERT INTO nodes (node, body, updated_at_ms) VALUES (?, ?, ?)
             ON CONFLICT (node) DO UPDATE SET body = excluded.body, updated_at_ms = excluded.updated_at_ms",
        )
        .bind(node.node.as_str())
        .bind(json(node)?)
        .bind(now_ms),
        Write::ForgetNode(node) => sqlx::query("DELETE FROM nodes WHERE node = ?").bind(node.as_str()),
        Write::SaveDeployment(deployment) => sqlx::query(
            "INSERT INTO deployments (name, body, updated_at_ms) VALUES (?, ?, ?)
             ON CONFLICT (name) DO UPDATE SET body = excluded.body, updated_at_ms = excluded.updated_at_ms",
        )
        .bind(deployment.name.as_str())
        .bind(json(deployment)?)
        .bind(now_ms),
        Write::Certificate { serial, node, expires_at_ms } => sqlx::query(
            "INSERT INTO certificates (serial, node, issued_at_ms, expires_at_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT (serial) DO NOTHING",
        )
        .bind(serial.as_str())
        .bind(node.as_str())
        .bind(now_ms)
        .bind(signed(*expires_at_ms)),
        Write::Barrier(_) => return Ok(()),
    };
    query.execute(connection).await.map(|_| ())
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}
