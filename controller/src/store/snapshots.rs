//! What is known of the snapshots in the object store.

use std::time::Duration;

use cic_common::id::Term;
use sqlx::AnyConnection;
use sqlx::Row as _;

use super::database::{Database, StoreError, signed, unsigned};

/// A snapshot that was written and read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// By the database's clock.
    pub taken_at_ms: u64,
    pub term: Term,
    /// Of the object.
    pub url: String,
    pub bytes: u64,
    /// Of the object as a whole, SHA-256 as hex.
    pub checksum: String,
    pub node_count: u64,
    pub operation_count: u64,
}

impl Database {
    /// Those in the object store, as far as this database knows, oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn snapshots(&self) -> Result<Vec<StoredSnapshot>, StoreError> {
        let query = sqlx::query(
            "SELECT taken_at_ms, term, url, bytes, checksum, node_count, operation_count
             FROM skypilot_state_snapshots ORDER BY term, taken_at_ms",
        );
        let rows = self.fetch(query).await?;
        let number = |row: &sqlx::any::AnyRow, place: usize| unsigned(row.get(place));
        Ok(rows
            .iter()
            .map(|row| StoredSnapshot {
                taken_at_ms: number(row, 0),
                term: Term(number(row, 1)),
                url: row.get(2),
                bytes: number(row, 3),
                checksum: row.get(4),
                node_count: number(row, 5),
                operation_count: number(row, 6),
            })
            .collect())
    }

    /// How long ago the newest was taken; `None` where there is none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn snapshot_age(&self) -> Result<Option<Duration>, StoreError> {
        let query = sqlx::query(
            "SELECT (SELECT max(taken_at_ms) FROM skypilot_state_snapshots), now_ms FROM database_clock",
        );
        let row = self.fetch(query).await?.pop();
        Ok(row.and_then(|row| {
            let taken_at_ms = row.get::<Option<i64>, _>(0)?;
            Some(Duration::from_millis(unsigned(row.get::<i64, _>(1) - taken_at_ms)))
        }))
    }
}

pub(super) async fn save(
    connection: &mut AnyConnection,
    snapshot: &StoredSnapshot,
) -> Result<(), sqlx::Error> {
    forget(connection, &snapshot.url).await?;
    sqlx::query(
        "INSERT INTO skypilot_state_snapshots
             (id, taken_at_ms, term, url, bytes, checksum, node_count, operation_count, state)
         SELECT coalesce(max(id), 0) + 1, $1, $2, $3, $4, $5, $6, $7, 'kept' FROM skypilot_state_snapshots",
    )
    .bind(signed(snapshot.taken_at_ms))
    .bind(signed(snapshot.term.0))
    .bind(snapshot.url.clone())
    .bind(signed(snapshot.bytes))
    .bind(snapshot.checksum.clone())
    .bind(signed(snapshot.node_count))
    .bind(signed(snapshot.operation_count))
    .execute(connection)
    .await
    .map(drop)
}

pub(super) async fn forget(connection: &mut AnyConnection, url: &str) -> Result<(), sqlx::Error> {
    let query = sqlx::query("DELETE FROM skypilot_state_snapshots WHERE url = $1").bind(url.to_owned());
    query.execute(connection).await.map(drop)
}
