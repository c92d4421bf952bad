//! The event log: appended in batches, read by the API.

use cic_common::id::{NodeId, Term};
use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::database::{Database, LIST_MAX, StoreError, signed, unsigned};
use crate::core::{EventRecord, Severity};

/// An entry on its way to the log.
#[derive(Debug, Clone)]
pub struct PendingEvent {
    pub(super) seq: u64,
    pub(super) at_ms: u64,
    pub(super) record: EventRecord,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Counts up; ask for what comes after the last one seen.
    pub id: u64,
    pub at_unix_ms: u64,
    pub node: Option<String>,
    pub severity: Severity,
    pub kind: String,
    pub text: String,
}

impl Database {
    /// Entries after `after`, oldest first, at most `limit` (and at most 1,000). Without `after`: the newest
    /// ones, still oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events(
        &self,
        after: Option<u64>,
        limit: u32,
        node: Option<&NodeId>,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let node = node.map(NodeId::as_str);
        let limit = i64::from(limit.min(LIST_MAX));
        let rows = match after {
            Some(after) => {
                let query = sqlx::query(
                    "SELECT id, at_ms, node, severity, kind, text FROM events
                     WHERE id > $1 AND ($2 IS NULL OR node = $2) ORDER BY id LIMIT $3",
                );
                self.fetch(query.bind(signed(after)).bind(node).bind(limit)).await?
            }
            None => {
                let query = sqlx::query(
                    "SELECT * FROM (SELECT id, at_ms, node, severity, kind, text FROM events
                     WHERE ($1 IS NULL OR node = $1) ORDER BY id DESC LIMIT $2) AS newest ORDER BY id",
                );
                self.fetch(query.bind(node).bind(limit)).await?
            }
        };
        let entry = |row: &AnyRow| StoredEvent {
            id: unsigned(row.get(0)),
            at_unix_ms: unsigned(row.get(1)),
            node: row.get(2),
            severity: severity(row.get(3)),
            kind: row.get(4),
            text: row.get(5),
        };
        Ok(rows.iter().map(entry).collect())
    }
}

/// Appends `events`. The caller's transaction has the lock of the lease, so no other gives out ids.
pub(super) async fn append(
    connection: &mut AnyConnection,
    term: Term,
    events: &[PendingEvent],
) -> Result<(), sqlx::Error> {
    for PendingEvent { seq, at_ms, record } in events {
        sqlx::query(
            "INSERT INTO events (id, term, seq, at_ms, node, severity, kind, text)
             SELECT coalesce(max(id), 0) + 1, $1, $2, $3, $4, $5, $6, $7 FROM events WHERE true
             ON CONFLICT (term, seq) DO NOTHING",
        )
        .bind(signed(term.0))
        .bind(signed(*seq))
        .bind(signed(*at_ms))
        .bind(record.node.as_ref().map(NodeId::as_str))
        .bind(severity_text(record.severity))
        .bind(storable(&record.kind))
        .bind(storable(&record.text))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// PostgreSQL refuses the character 0 in a text, and a batch that is refused once is refused for ever.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn severity_text(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Alert => "alert",
    }
}

fn severity(text: &str) -> Severity {
    match text {
        "info" => Severity::Info,
        "warning" => Severity::Warning,
        _ => Severity::Alert,
    }
}
