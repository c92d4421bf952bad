//! An empty database of either kind, its clock in the test's hand.

use std::str::FromStr as _;
use std::time::Duration;

use cic_common::id::{ControllerId, Term};
use cic_controller::store::{Database, Holder, Taken};
use fleet_tests::process::Postgres;
use sqlx::any::AnyConnectOptions;
use sqlx::{AnyConnection, AssertSqlSafe, ConnectOptions as _};
use tempfile::TempDir;

/// Longest for what must happen; a loaded machine is slow.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A lease's span in tests, whose clock moves by hand.
pub(crate) const SPAN: Duration = Duration::from_secs(4);

const DATABASE: &str = "fleet";

/// Takes the clock's place: a table that moves when it is told to.
const HELD_CLOCK: &str = "
    CREATE TABLE held_clock (now_ms BIGINT NOT NULL);
    INSERT INTO held_clock SELECT now_ms FROM database_clock;
    DROP VIEW database_clock;
    CREATE VIEW database_clock AS SELECT now_ms FROM held_clock";

pub(crate) enum Place {
    Sqlite(TempDir),
    Postgres(Postgres),
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().expect("a directory"))
    }

    /// None where there is no PostgreSQL.
    pub(crate) fn postgres() -> Option<Self> {
        let server = Postgres::start()?;
        server.database(DATABASE).expect("a database");
        Some(Self::Postgres(server))
    }

    /// Opens it as another controller would, with its tables.
    pub(crate) async fn open(&self) -> Database {
        let database = self.open_bare().await;
        database.migrate().await.expect("migrates");
        database
    }

    pub(crate) async fn open_bare(&self) -> Database {
        let password = match self {
            Self::Sqlite(_) => None,
            Self::Postgres(server) => Some(server.password()),
        };
        Database::open(&self.url(), password).await.expect("opens")
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(directory) => format!("sqlite:{}", directory.path().join("fleet.db").display()),
            Self::Postgres(server) => server.url(DATABASE),
        }
    }

    /// A connection that is nobody's, after the first [`Self::open`].
    pub(crate) async fn connect(&self) -> AnyConnection {
        let mut options = AnyConnectOptions::from_str(&self.url()).expect("a url");
        if let Self::Postgres(server) = self {
            options.database_url.query_pairs_mut().append_pair("password", server.password());
        }
        options.connect().await.expect("connects")
    }

    /// Carries statements out, as an operator could.
    pub(crate) async fn sql(&self, statements: &str) -> Result<(), sqlx::Error> {
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        statements.execute(&mut self.connect().await).await.map(drop)
    }

    /// As after the loss of its disk: an empty one is in its place.
    pub(crate) async fn lose(&self) {
        match self {
            Self::Sqlite(directory) => {
                for name in ["fleet.db", "fleet.db-wal", "fleet.db-shm"] {
                    let _ = std::fs::remove_file(directory.path().join(name));
                }
            }
            Self::Postgres(_) => {
                self.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.expect("lost");
            }
        }
    }

    /// From now on the database's clock only moves by [`Self::pass`].
    pub(crate) async fn hold_clock(&self) {
        self.sql(HELD_CLOCK).await.expect("a clock");
    }

    pub(crate) async fn pass(&self, span: Duration) {
        self.turn(i64::try_from(span.as_millis()).expect("short")).await;
    }

    /// Sets the database's clock forwards or backwards.
    pub(crate) async fn turn(&self, ms: i64) {
        self.sql(&format!("UPDATE held_clock SET now_ms = now_ms + {ms}")).await.expect("turned");
    }
}

pub(crate) fn holder(name: &str) -> Holder {
    let controller = ControllerId::new(name).expect("valid");
    Holder { controller, api: format!("http://{name}.example:7480") }
}

/// The term under which `name` now leads.
pub(crate) async fn lead(database: &Database, name: &str) -> Term {
    match database.take_lease(&holder(name), SPAN).await.expect("answers") {
        Taken::Yes(term) => term,
        Taken::No(lease) => panic!("taken by {lease:?}"),
    }
}
