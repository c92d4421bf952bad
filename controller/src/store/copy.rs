//! Everything durable as one value, read in one moment and written back into an empty database.
//!
//! Rows travel as the database has them, table by table, so that one text serves both kinds of database.

use std::collections::BTreeMap;
use std::time::Duration;

use cic_common::id::Term;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe, Connection as _, Row as _};

use super::database::{Database, StoreError, signed, unsigned};
use super::loan::{Loan, within};

/// Newest rows of the logs that are copied; of operations also all that are open. As many as one listing shows.
const NEWEST: u32 = 1000;

/// Added to the copy's term and to its highest operation id. Both count what was given out after the copy was taken, and
/// agents and providers remember that: a term per 250 ms for three days, an operation each second for eleven.
const LEAP: i64 = 1_000_000;

/// Ten thousand rows at 1 ms each over a network, and more.
const LOAD_WITHIN: Duration = Duration::from_secs(120);

/// Who has the lease of a database that was just restored; its lease is over.
const HOLDER: &str = "restore";

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Real,
}
use Kind::{Integer, Real, Text};

/// One table, its key first.
struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
    /// Which rows; empty for all.
    rows: &'static str,
    /// Whether a fleet that has rows in it has something to lose.
    is_state: bool,
}

const TABLES: [Table; 9] = [
    Table {
        name: "deployments",
        columns: &[("name", Text), ("body", Text), ("updated_at_ms", Integer)],
        rows: "",
        is_state: true,
    },
    Table {
        name: "nodes",
        columns: &[("node", Text), ("body", Text), ("updated_at_ms", Integer)],
        rows: "",
        is_state: true,
    },
    Table {
        name: "operations",
        columns: &[
            ("id", Integer),
            ("node", Text),
            ("kind", Text),
            ("state", Text),
            ("is_open", Integer),
            ("body", Text),
            ("recorded_at_ms", Integer),
            ("updated_at_ms", Integer),
        ],
        rows: "WHERE is_open = 1 OR id > (SELECT coalesce(max(id), 0) FROM operations) - $1",
        is_state: true,
    },
    Table {
        name: EVENTS,
        columns: &[
            ("id", Integer),
            ("term", Integer),
            ("seq", Integer),
            ("at_ms", Integer),
            ("node", Text),
            ("severity", Text),
            ("kind", Text),
            ("text", Text),
        ],
        rows: "WHERE id > (SELECT coalesce(max(id), 0) FROM events) - $1",
        is_state: false,
    },
    Table {
        name: "join_tokens",
        columns: &[
            ("hash", Text),
            ("node", Text),
            ("created_at_ms", Integer),
            ("expires_at_ms", Integer),
            ("used_at_ms", Integer),
        ],
        rows: "",
        is_state: true,
    },
    Table {
        name: "certificates",
        columns: &[("serial", Text), ("node", Text), ("issued_at_ms", Integer), ("expires_at_ms", Integer)],
        rows: "",
        is_state: true,
    },
    Table {
        name: "skypilot_clusters",
        columns: &[
            ("cluster_name", Text),
            ("deployment", Text),
            ("provider", Text),
            ("region", Text),
            ("zone", Text),
            ("gpu", Text),
            ("pricing", Text),
            ("status", Text),
            ("node_count", Integer),
            ("price_per_hour_usd", Real),
            ("cluster_hash", Text),
            ("launched_by", Integer),
            ("launched_at_ms", Integer),
            ("last_seen_at_ms", Integer),
            ("updated_at_ms", Integer),
        ],
        rows: "",
        is_state: false,
    },
    Table {
        name: "skypilot_state_snapshots",
        columns: &[
            ("id", Integer),
            ("taken_at_ms", Integer),
            ("term", Integer),
            ("url", Text),
            ("bytes", Integer),
            ("checksum", Text),
            ("node_count", Integer),
            ("operation_count", Integer),
            ("state", Text),
        ],
        rows: "",
        is_state: false,
    },
    Table {
        name: "skypilot_sync_status",
        columns: &[
            ("provider", Text),
            ("state", Text),
            ("store_hash", Text),
            ("provider_hash", Text),
            ("drift", Text),
            ("checked_at_ms", Integer),
            ("in_sync_since_ms", Integer),
            ("error", Text),
        ],
        rows: "",
        is_state: false,
    },
];

/// Never deleted from: the database refuses it.
const EVENTS: &str = "events";

/// Everything durable, of one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateCopy {
    /// The newest; 0 where no controller ever led.
    pub term: Term,
    /// By the database's clock.
    pub taken_at_ms: u64,
    tables: BTreeMap<String, Rows>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Rows {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

impl StateCopy {
    /// Rows of a table; 0 of one that it does not have.
    #[must_use]
    pub fn count(&self, table: &str) -> usize {
        self.tables.get(table).map_or(0, |rows| rows.rows.len())
    }

    /// Whether a fleet without it has lost nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        TABLES.iter().all(|table| !table.is_state || self.count(table.name) == 0)
    }
}

/// What a database holds that a copy was written into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The next leader's is higher.
    pub term: Term,
    /// Tables with rows, and how many.
    pub rows: Vec<(&'static str, usize)>,
    /// The event log had entries; they were kept and the copy's left out.
    pub kept_events: bool,
}

/// Why a copy was not written. Nothing of it is then.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("controller {holder} leads this database for another {left:?}: stop every controller first")]
    Led { holder: String, left: Duration },
    #[error("the database is not empty, it would lose: {}", listed(.0))]
    NotEmpty(Vec<(&'static str, u64)>),
    #[error("table {0} of the copy is not one of this program's")]
    Table(String),
    #[error("a row of table {table} of the copy has a value that does not belong there: {column}")]
    Row { table: &'static str, column: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for LoadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

fn listed(counts: &[(&'static str, u64)]) -> String {
    counts.iter().map(|(table, count)| format!("{table} {count}")).collect::<Vec<_>>().join(", ")
}

impl Database {
    /// Reads everything durable.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn copy(&self) -> Result<StateCopy, StoreError> {
        within(async {
            let mut loan = Loan::take(&self.pool).await?;
            let mut moment = loan.connection().begin_with(self.backend.begin_reading()).await?;
            let term =
                "SELECT coalesce(max(term), 0), (SELECT now_ms FROM database_clock) FROM controller_lease";
            let row = sqlx::query(term).fetch_one(&mut *moment).await?;
            let (term, taken_at_ms) = (Term(unsigned(row.get(0))), unsigned(row.get(1)));
            let mut tables = BTreeMap::new();
            for table in &TABLES {
                tables.insert(table.name.to_owned(), table.read(&mut moment).await?);
            }
            moment.rollback().await?;
            loan.give_back();
            Ok(StateCopy { term, taken_at_ms, tables })
        })
        .await
    }

    /// Writes `copy`, whose name is `from`, into this database: all of it or nothing. One that has rows is written over
    /// only when `over` says so; its event log stays also then.
    ///
    /// # Errors
    /// [`LoadError`]; after [`StoreError::Timeout`] look before doing it again.
    pub async fn load(&self, copy: &StateCopy, from: &str, over: bool) -> Result<Loaded, LoadError> {
        match tokio::time::timeout(LOAD_WITHIN, self.load_at_once(copy, from, over)).await {
            Ok(loaded) => loaded,
            Err(_) => Err(StoreError::Timeout(LOAD_WITHIN).into()),
        }
    }

    async fn load_at_once(&self, copy: &StateCopy, from: &str, over: bool) -> Result<Loaded, LoadError> {
        if let Some(name) = copy.tables.keys().find(|name| TABLES.iter().all(|table| table.name != **name)) {
            return Err(LoadError::Table(name.clone()));
        }
        let mut loan = Loan::take(&self.pool).await.map_err(StoreError::from)?;
        let mut transaction = loan.connection().begin().await?;
        let (term, now_ms) = lock(&mut transaction).await?;
        let mut present = Vec::new();
        for table in &TABLES {
            let query = format!("SELECT count(*) FROM {}", table.name);
            let count = sqlx::query(AssertSqlSafe(query)).fetch_one(&mut *transaction).await?;
            present.push((table.name, unsigned(count.get(0))));
        }
        present.retain(|(_, count)| *count > 0);
        if !present.is_empty() && !over {
            return Err(LoadError::NotEmpty(present));
        }
        let kept_events = present.iter().any(|(table, _)| *table == EVENTS);
        let mut rows = Vec::new();
        let ids = "SELECT coalesce(max(id), 0) FROM operations";
        let operation_last: i64 = sqlx::query(ids).fetch_one(&mut *transaction).await?.get(0);
        for table in TABLES.iter().filter(|table| !(kept_events && table.name == EVENTS)) {
            if table.name != EVENTS {
                let query = format!("DELETE FROM {}", table.name);
                sqlx::query(AssertSqlSafe(query)).execute(&mut *transaction).await?;
            }
            let Some(copied) = copy.tables.get(table.name) else { continue };
            table.write(&mut transaction, copied).await?;
            rows.push((table.name, copied.rows.len()));
        }
        // Terms and ids that a lost database gave out after this snapshot are known to agents and providers, and to nobody
        // else; at less than one in a millisecond they are all below the time.
        let term = term.max(signed(copy.term.0)).saturating_add(LEAP).max(now_ms);
        sqlx::query("UPDATE controller_lease SET term = $1, holder = $2, expires_at_ms = 0")
            .bind(term)
            .bind(HOLDER)
            .execute(&mut *transaction)
            .await?;
        let restored: i64 = sqlx::query(ids).fetch_one(&mut *transaction).await?.get(0);
        sqlx::query(
            "INSERT INTO restores (term, snapshot, operation_floor, restored_at_ms) VALUES ($1, $2, $3, $4)",
        )
        .bind(term)
        .bind(from.to_owned())
        .bind(operation_last.max(restored).saturating_add(LEAP).max(now_ms))
        .bind(now_ms)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        loan.give_back();
        rows.retain(|(_, count)| *count > 0);
        Ok(Loaded { term: Term(unsigned(term)), rows, kept_events })
    }
}

/// Takes the lease's lock until the end of the transaction. Its term, and the database's time.
async fn lock(connection: &mut AnyConnection) -> Result<(i64, i64), LoadError> {
    let row = sqlx::query(
        "INSERT INTO controller_lease (singleton, term, holder, holder_api, renewed_at_ms, expires_at_ms)
         VALUES (1, 0, $1, '', 0, 0) ON CONFLICT (singleton) DO UPDATE SET term = controller_lease.term
         RETURNING term, holder, expires_at_ms, (SELECT now_ms FROM database_clock)",
    )
    .bind(HOLDER)
    .fetch_all(connection)
    .await?;
    let row = row.first().ok_or(StoreError::NoLease)?;
    let (expires_at_ms, now_ms): (i64, i64) = (row.get(2), row.get(3));
    if expires_at_ms > now_ms {
        let left = Duration::from_millis(unsigned(expires_at_ms - now_ms));
        return Err(LoadError::Led { holder: row.get(1), left });
    }
    Ok((row.get(0), now_ms))
}

impl Table {
    async fn read(&self, connection: &mut AnyConnection) -> Result<Rows, sqlx::Error> {
        let key = self.columns[0].0;
        let text = format!("SELECT {} FROM {} {} ORDER BY {key}", self.names(), self.name, self.rows);
        let query = sqlx::query(AssertSqlSafe(text));
        let query = if self.rows.is_empty() { query } else { query.bind(i64::from(NEWEST)) };
        let found = query.fetch_all(connection).await?;
        let columns = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Ok(Rows { columns, rows: found.iter().map(|row| self.values(row)).collect() })
    }

    fn values(&self, row: &AnyRow) -> Vec<Value> {
        let value = |(place, (_, kind)): (usize, &(&str, Kind))| match kind {
            Text => row.get::<Option<String>, _>(place).map_or(Value::Null, Value::from),
            Integer => row.get::<Option<i64>, _>(place).map_or(Value::Null, Value::from),
            Real => row.get::<Option<f64>, _>(place).map_or(Value::Null, Value::from),
        };
        self.columns.iter().enumerate().map(value).collect()
    }

    async fn write(&self, connection: &mut AnyConnection, rows: &Rows) -> Result<(), LoadError> {
        let places: Vec<String> = (1..=self.columns.len()).map(|place| format!("${place}")).collect();
        let text = format!("INSERT INTO {} ({}) VALUES ({})", self.name, self.names(), places.join(", "));
        for row in &rows.rows {
            let mut query = sqlx::query(AssertSqlSafe(text.clone()));
            for (name, kind) in self.columns {
                let place = rows.columns.iter().position(|column| column == name);
                let value = place.and_then(|place| row.get(place)).unwrap_or(&Value::Null);
                let wrong = LoadError::Row { table: self.name, column: name };
                query = bind(query, *kind, value).ok_or(wrong)?;
            }
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }

    fn names(&self) -> String {
        self.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

type Statement<'q> = Query<'q, Any, AnyArguments>;

/// None when `value` is not of that kind.
fn bind<'q>(query: Statement<'q>, kind: Kind, value: &Value) -> Option<Statement<'q>> {
    let is_null = value.is_null();
    match kind {
        Text if is_null => Some(query.bind(None::<String>)),
        Text => value.as_str().map(|text| query.bind(text.to_owned())),
        Integer if is_null => Some(query.bind(None::<i64>)),
        Integer => value.as_i64().map(|number| query.bind(number)),
        Real if is_null => Some(query.bind(None::<f64>)),
        Real => value.as_f64().map(|number| query.bind(number)),
    }
}
