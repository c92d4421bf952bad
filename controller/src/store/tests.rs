//! What tests of other parts need of a store, and what only this folder can see. The store's rules are tried on both
//! databases by `tests/store`.

use std::time::Duration;

use cic_common::id::{ControllerId, Term};
use sqlx::Row as _;

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// A term of the lease, under which a writer stores.
pub(crate) async fn taken(database: &Database) -> Term {
    let holder = Holder { controller: ControllerId::new("a").expect("valid"), api: String::new() };
    match database.take_lease(&holder, SOON).await.expect("answers") {
        Taken::Yes(term) => term,
        Taken::No(lease) => panic!("taken: {lease:?}"),
    }
}

#[tokio::test]
async fn every_connection_to_a_file_survives_power_cuts_and_waits_for_locks() {
    let directory = tempfile::tempdir().expect("directory");
    // Each of these would end a path, or be read as an escape, in a url.
    let path = directory.path().join("a?b#c%41 d.db");
    let database = Database::open_file(&path).await.expect("opens");
    assert!(path.is_file());
    for pool in [&database.pool, &database.lease_pool] {
        for (setting, expected) in
            [("synchronous", "2"), ("foreign_keys", "1"), ("busy_timeout", "2000"), ("journal_mode", "wal")]
        {
            let query = format!("SELECT CAST({setting} AS TEXT) FROM pragma_{setting}");
            let query = query.replace("CAST(busy_timeout", "CAST(timeout");
            let row = sqlx::raw_sql(sqlx::AssertSqlSafe(query)).fetch_one(pool).await.expect("answers");
            assert_eq!(row.get::<&str, _>(0), expected, "{setting}");
        }
    }
}

/// Holds the database's write lock, so that every write fails until it is released.
pub(crate) struct WriteLock(sqlx::Transaction<'static, sqlx::Any>);

impl WriteLock {
    pub(crate) async fn release(self) {
        self.0.rollback().await.expect("rolls back");
    }
}

impl Database {
    pub(crate) async fn lock_for_test(&self) -> WriteLock {
        let transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.expect("locks");
        WriteLock(transaction)
    }
}
