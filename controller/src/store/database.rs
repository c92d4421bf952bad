//! The SQLite database: opening, migrations, the term, and what a starting controller reads.

use std::future::Future;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use cic_common::id::{OperationId, Term};
use cic_common::time::unix_ms;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};

use crate::core::{Operation, OperationState, Restored};

/// One writer and a few readers; WAL lets readers go on while the writer commits.
const CONNECTIONS_MAX: u32 = 4;

/// A statement that takes longer means a disk or a lock that does not answer. A commit with `synchronous=FULL`
/// took 2 to 30 ms on the disks tried.
const STATEMENT_WITHIN: Duration = Duration::from_secs(5);

/// Another process holding the write lock is waited for this long: less than a statement's own deadline.
const BUSY_FOR: Duration = Duration::from_secs(2);

/// Rows one listing returns at most.
pub(super) const LIST_MAX: u32 = 1000;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store url {0:?} is not sqlite:PATH")]
    Url(String),
    #[error("cannot open the database {path:?}")]
    Open { path: String, source: sqlx::Error },
    #[error("cannot migrate the database")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("database statement failed")]
    Statement(#[from] sqlx::Error),
    #[error("database did not answer within {0:?}")]
    Timeout(Duration),
    #[error("stored {table} row is not readable")]
    Row { table: &'static str, source: serde_json::Error },
    #[error("no randomness from the operating system")]
    Randomness,
}

/// An open database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Database {
    pub(super) pool: SqlitePool,
}

impl Database {
    /// Opens `url` (`sqlite:PATH`), creating the file when it is missing. Does not migrate.
    ///
    /// # Errors
    /// When the url is no SQLite url or the file cannot be opened.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url).map_err(|_| StoreError::Url(url.to_owned()))?;
        Self::connect(options, url).await
    }

    /// Opens the database file `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or created.
    pub async fn open_file(path: &Path) -> Result<Self, StoreError> {
        Self::connect(SqliteConnectOptions::new().filename(path), &path.display().to_string()).await
    }

    async fn connect(options: SqliteConnectOptions, path: &str) -> Result<Self, StoreError> {
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_FOR);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(STATEMENT_WITHIN)
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        Ok(Self { pool })
    }

    /// Brings the tables to this program's version. Repeating it changes nothing.
    ///
    /// # Errors
    /// When a migration fails, or the database was migrated by a newer program.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        Ok(sqlx::migrate!("./migrations").run(&self.pool).await?)
    }

    /// A term above every earlier one, stored before it is returned.
    ///
    /// # Errors
    /// When it cannot be stored; without a term a controller may not lead.
    pub async fn raise_term(&self) -> Result<Term, StoreError> {
        let row = within(
            sqlx::query(
                "INSERT INTO controller_term (singleton, term, raised_at_ms) VALUES (1, 1, ?)
                 ON CONFLICT (singleton) DO UPDATE SET term = term + 1, raised_at_ms = excluded.raised_at_ms
                 RETURNING term",
            )
            .bind(signed(unix_ms()))
            .fetch_one(&self.pool),
        )
        .await?;
        Ok(Term(unsigned(row.get(0))))
    }

    /// Everything a starting controller needs, under the `term` it has raised.
    ///
    /// # Errors
    /// When the database fails or holds a row this program cannot read.
    pub async fn restore(&self, term: Term) -> Result<Restored, StoreError> {
        let last =
            within(sqlx::query("SELECT coalesce(max(id), 0) FROM operations").fetch_one(&self.pool)).await?;
        let open = within(
            sqlx::query("SELECT body FROM operations WHERE is_open = 1 ORDER BY id").fetch_all(&self.pool),
        );
        let deployments =
            within(sqlx::query("SELECT body FROM deployments ORDER BY name").fetch_all(&self.pool));
        let nodes = within(sqlx::query("SELECT body FROM nodes ORDER BY node").fetch_all(&self.pool));
        let mut operations: Vec<Operation> = bodies("operations", &open.await?)?;
        for operation in &mut operations {
            // It was written down as an intent; that it is here makes it recorded.
            operation.state = OperationState::Recorded;
        }
        Ok(Restored {
            term,
            operation_last: OperationId(unsigned(last.get(0))),
            deployments: bodies("deployments", &deployments.await?)?,
            nodes: bodies("nodes", &nodes.await?)?,
            operations,
        })
    }

    /// The newest `limit` operations (at most 1,000), newest first, closed ones included.
    ///
    /// # Errors
    /// When the database fails or holds a row this program cannot read.
    pub async fn operations(&self, limit: u32) -> Result<Vec<Operation>, StoreError> {
        let rows = within(
            sqlx::query("SELECT body FROM operations ORDER BY id DESC LIMIT ?")
                .bind(i64::from(limit.min(LIST_MAX)))
                .fetch_all(&self.pool),
        )
        .await?;
        bodies("operations", &rows)
    }

    /// Closes every connection, so that the WAL is folded into the file.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(STATEMENT_WITHIN, self.pool.close()).await;
    }
}

/// Waits for one statement, but not for ever.
pub(super) async fn within<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(STATEMENT_WITHIN, statement).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StoreError::Timeout(STATEMENT_WITHIN)),
    }
}

/// SQLite integers are signed; ours count up from zero and stay far below 2^63.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn bodies<T: DeserializeOwned>(table: &'static str, rows: &[SqliteRow]) -> Result<Vec<T>, StoreError> {
    rows.iter()
        .map(|row| {
            serde_json::from_str(row.get::<&str, _>(0)).map_err(|source| StoreError::Row { table, source })
        })
        .collect()
}
