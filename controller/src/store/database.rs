//! The database: opening, migrations, and what a controller reads when it starts or follows.

use std::path::Path;
use std::time::Duration;

use cic_common::backoff::Backoff;
use cic_common::id::{OperationId, Term};
use serde::de::DeserializeOwned;
use sqlx::any::{AnyArguments, AnyPoolOptions, AnyRow};
use sqlx::migrate::{MigrateError, Migration, Migrator};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Executor as _, Row as _};
use tracing::warn;

use super::address::{Address, AddressError, Backend};
use super::loan::{Loan, STATEMENT_WITHIN, within};
use crate::core::{Operation, OperationState, Restored};

/// One writer and a few readers.
const CONNECTIONS_MAX: u32 = 4;

/// Of the lease's own, so that no reader makes a leader late: one renews while another looks.
const LEASE_CONNECTIONS_MAX: u32 = 2;

/// A migration that rewrites a table of the largest size takes minutes; only what cannot end is ended.
const MIGRATE_WITHIN: Duration = Duration::from_secs(600);

/// Rows one listing returns at most.
pub(super) const LIST_MAX: u32 = 1000;

/// `cannot_connect_now` and `too_many_connections`, by PostgreSQL's Appendix A: it starts, stops, or is full.
const ABSENT: [&str; 2] = ["57P03", "53300"];

/// Between two attempts to open a database that does not answer.
const OPEN_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Some minute of them.
const TRIES_BETWEEN_WORDS: u32 = 15;

static TABLES: Migrator = sqlx::migrate!("./migrations");
static OWN_TO_SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
static OWN_TO_POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store url {url:?} cannot be used")]
    Url { url: String, source: AddressError },
    #[error("cannot open the database {address}")]
    Open { address: String, source: sqlx::Error },
    #[error("the database is of a newer program: migration {0} is unknown to this one")]
    Newer(i64),
    #[error("cannot migrate the database")]
    Migrate(#[source] MigrateError),
    #[error("database statement failed")]
    Statement(#[from] sqlx::Error),
    #[error("database did not answer within {0:?}")]
    Timeout(Duration),
    #[error("stored {table} row is not readable")]
    Row { table: &'static str, source: serde_json::Error },
    #[error("no randomness from the operating system")]
    Randomness,
    /// Nothing was stored, nor will be under that term. `newest` is 0 where there is no lease at all.
    #[error("term {term} is over: the lease has term {newest}")]
    Fenced { term: Term, newest: Term },
    #[error("the database has no lease any more")]
    NoLease,
}

impl StoreError {
    /// Whether nobody answers for the database now and somebody may later, other than one that refuses.
    fn is_absence(&self) -> bool {
        let Self::Open { source, .. } = self else { return matches!(self, Self::Timeout(_)) };
        match source {
            sqlx::Error::Io(_) => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| ABSENT.contains(&&*code)),
            _ => false,
        }
    }
}

/// An open database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Database {
    pub(super) pool: AnyPool,
    pub(super) lease_pool: AnyPool,
    pub(super) backend: Backend,
}

impl Database {
    /// Opens `url`, see [`Address`], with the password if one is needed. A missing SQLite file is created. Does not
    /// migrate.
    ///
    /// # Errors
    /// When the url is of neither kind, or the database does not answer in time.
    pub async fn open(url: &str, password: Option<&str>) -> Result<Self, StoreError> {
        let address = url.parse().map_err(|source| StoreError::Url { url: url.to_owned(), source })?;
        Self::connect(&address, password).await
    }

    /// Waits for the server at `url`, without end: a controller that comes up before its database would otherwise have to be
    /// started again by somebody. Nothing is made there; a file is not waited for.
    ///
    /// # Errors
    /// When the url is of neither kind, or the server refuses.
    pub async fn wait_until_there(url: &str, password: Option<&str>) -> Result<(), StoreError> {
        let address: Address =
            url.parse().map_err(|source| StoreError::Url { url: url.to_owned(), source })?;
        match address.backend {
            Backend::Sqlite => Ok(()),
            Backend::Postgres => Self::wait_for_answer(&address, password).await,
        }
    }

    async fn wait_for_answer(address: &Address, password: Option<&str>) -> Result<(), StoreError> {
        let mut waits = Backoff::new(OPEN_AGAIN.0, OPEN_AGAIN.1);
        let mut tries = 0_u32;
        loop {
            let error = match Self::knock(address, password).await {
                Err(error) if error.is_absence() => error,
                answer => return answer,
            };
            if tries.is_multiple_of(TRIES_BETWEEN_WORDS) {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, ?cause, "the database does not answer; waiting for it");
            }
            tries += 1;
            tokio::time::sleep(waits.next_wait()).await;
        }
    }

    /// One connection of no pool, which would try a refusal again until its time is over, and then tell of the time.
    async fn knock(address: &Address, password: Option<&str>) -> Result<(), StoreError> {
        let knocked = async {
            let mut connection = AnyConnection::connect_with(&address.options(password)).await?;
            connection.execute(AssertSqlSafe(address.backend.session())).await?;
            connection.close().await
        };
        match tokio::time::timeout(STATEMENT_WITHIN, knocked).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(StoreError::Open { address: address.to_string(), source }),
            Err(_) => Err(StoreError::Timeout(STATEMENT_WITHIN)),
        }
    }

    /// Opens the SQLite file `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or created.
    pub async fn open_file(path: &Path) -> Result<Self, StoreError> {
        let address = Address::file(path)
            .map_err(|source| StoreError::Url { url: path.display().to_string(), source })?;
        Self::connect(&address, None).await
    }

    async fn connect(address: &Address, password: Option<&str>) -> Result<Self, StoreError> {
        let (options, backend) = (address.options(password), address.backend);
        let pool = |connections_max| {
            AnyPoolOptions::new()
                .max_connections(connections_max)
                .acquire_timeout(STATEMENT_WITHIN)
                .after_connect(move |connection, _| {
                    let session = sqlx::raw_sql(AssertSqlSafe(backend.session()));
                    Box::pin(async move { session.execute(connection).await.map(drop) })
                })
        };
        let lease_pool = pool(LEASE_CONNECTIONS_MAX).connect_lazy_with(options.clone());
        let pool = pool(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Open { address: address.to_string(), source })?;
        Ok(Self { pool, lease_pool, backend })
    }

    /// Brings the tables to this program's version. Repeating it changes nothing; of several controllers that do it
    /// at once one does, and the others wait for it.
    ///
    /// # Errors
    /// When a migration fails, or the database was migrated by a newer program.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let own = match self.backend {
            Backend::Sqlite => &OWN_TO_SQLITE,
            Backend::Postgres => &OWN_TO_POSTGRES,
        };
        let all: Vec<Migration> = TABLES.iter().chain(own.iter()).cloned().collect();
        let migrator = Migrator::with_migrations(all);
        let migrated = async {
            // Closed afterwards: its deadlines are not those of a statement.
            let mut loan = Loan::take(&self.pool).await?;
            if self.backend == Backend::Postgres {
                let unhurried = sqlx::raw_sql("SET statement_timeout = 0; SET lock_timeout = 0");
                unhurried.execute(loan.connection()).await?;
            }
            migrator.run_direct(None, loan.connection(), false).await
        };
        match tokio::time::timeout(MIGRATE_WITHIN, migrated).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(MigrateError::VersionMissing(version))) => Err(StoreError::Newer(version)),
            Ok(Err(error)) => Err(StoreError::Migrate(error)),
            Err(_) => Err(StoreError::Timeout(MIGRATE_WITHIN)),
        }
    }

    /// Everything a controller needs to lead under the `term` it has taken, or to follow whoever has it: the rows of
    /// one moment.
    ///
    /// # Errors
    /// When the database fails or holds a row this program cannot read.
    pub async fn restore(&self, term: Term) -> Result<Restored, StoreError> {
        let (last, open, deployments, nodes) = within(async {
            let mut loan = Loan::take(&self.pool).await?;
            let mut moment = loan.connection().begin_with(self.backend.begin_reading()).await?;
            let last = "SELECT coalesce(max(id), 0) FROM
                 (SELECT id FROM operations UNION ALL SELECT operation_floor FROM restores) AS ids";
            let last = sqlx::query(last).fetch_one(&mut *moment).await?;
            let open = sqlx::query("SELECT body FROM operations WHERE is_open = 1 ORDER BY id");
            let open = open.fetch_all(&mut *moment).await?;
            let deployments = sqlx::query("SELECT body FROM deployments ORDER BY name");
            let deployments = deployments.fetch_all(&mut *moment).await?;
            let nodes = sqlx::query("SELECT body FROM nodes ORDER BY node").fetch_all(&mut *moment).await?;
            moment.rollback().await?;
            loan.give_back();
            Ok((last, open, deployments, nodes))
        })
        .await?;
        let mut operations: Vec<Operation> = bodies("operations", &open)?;
        for operation in &mut operations {
            // It was written down as an intent; that it is here makes it recorded.
            operation.state = OperationState::Recorded;
        }
        Ok(Restored {
            term,
            operation_last: OperationId(unsigned(last.get(0))),
            deployments: bodies("deployments", &deployments)?,
            nodes: bodies("nodes", &nodes)?,
            operations,
        })
    }

    /// The newest `limit` operations (at most 1,000), newest first, closed ones included.
    ///
    /// # Errors
    /// When the database fails or holds a row this program cannot read.
    pub async fn operations(&self, limit: u32) -> Result<Vec<Operation>, StoreError> {
        let query = sqlx::query("SELECT body FROM operations ORDER BY id DESC LIMIT $1");
        bodies("operations", &self.fetch(query.bind(i64::from(limit.min(LIST_MAX)))).await?)
    }

    /// Whether it answers at all.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.fetch(sqlx::query("SELECT 1")).await.map(drop)
    }

    /// Closes every connection. SQLite then folds its WAL into the file.
    pub async fn close(&self) {
        let closed = async { tokio::join!(self.lease_pool.close(), self.pool.close()) };
        let _ = tokio::time::timeout(STATEMENT_WITHIN, closed).await;
    }

    /// The rows that a statement of its own returns.
    pub(super) async fn fetch(&self, query: Query<'_, Any, AnyArguments>) -> Result<Vec<AnyRow>, StoreError> {
        fetch(&self.pool, query).await
    }

    /// Carries a statement of its own out, and tells the number of rows that it changed.
    pub(super) async fn execute(&self, query: Query<'_, Any, AnyArguments>) -> Result<u64, StoreError> {
        execute(&self.pool, query).await
    }
}

pub(super) async fn fetch(
    pool: &AnyPool,
    query: Query<'_, Any, AnyArguments>,
) -> Result<Vec<AnyRow>, StoreError> {
    within(async {
        let mut loan = Loan::take(pool).await?;
        // All rows, also of a change that returns one: SQLite commits it when the last row was asked for.
        let rows = query.fetch_all(loan.connection()).await?;
        loan.give_back();
        Ok(rows)
    })
    .await
}

pub(super) async fn execute(pool: &AnyPool, query: Query<'_, Any, AnyArguments>) -> Result<u64, StoreError> {
    within(async {
        let mut loan = Loan::take(pool).await?;
        let done = query.execute(loan.connection()).await?;
        loan.give_back();
        Ok(done.rows_affected())
    })
    .await
}

/// Integers of a database are signed; ours count up from zero and stay far below 2^63.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn bodies<T: DeserializeOwned>(table: &'static str, rows: &[AnyRow]) -> Result<Vec<T>, StoreError> {
    rows.iter()
        .map(|row| {
            serde_json::from_str(row.get::<&str, _>(0)).map_err(|source| StoreError::Row { table, source })
        })
        .collect()
}
