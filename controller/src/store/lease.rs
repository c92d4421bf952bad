//! Who leads: one row with a term, held for a span by the database's own clock.
//!
//! ```text
//! (no row, or over) --take: term + 1--> held --renew--> held
//!        ^                               |
//!        '------ release, or time -------'
//! ```
//! Every write is fenced by the same row ([`Database::store`]): a transaction that has its lock delays whoever takes the
//! lease, and one that comes after finds the higher term. No clock of a controller plays a part.

use std::time::Duration;

use cic_common::id::{ControllerId, Term};
use sqlx::AnyConnection;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::database::{Database, StoreError, execute, fetch, signed, unsigned};

/// A controller, as a holder of the lease.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// No two controllers of a fleet may have the same: whoever has the holder's takes the lease from it at once, as a
    /// restarted controller may. Two processes on one state directory are kept apart by its lock file.
    pub controller: ControllerId,
    /// Base url of its HTTP API, for those who ask another.
    pub api: String,
}

/// The lease as the database has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    pub term: Term,
    pub holder: Holder,
    /// By the database's clock; zero when it is over.
    pub left: Duration,
}

/// What became of a wish to lead.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Taken {
    /// Under this term, which is higher than each before it.
    Yes(Term),
    /// Someone else has it.
    No(Lease),
}

/// What became of a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Renewed {
    Yes,
    /// Another term has begun; whoever asked leads no more.
    Lost(Lease),
}

impl Database {
    /// Takes the lease for `span`, if it is over, was never taken, or is `holder`'s already: also then a new term
    /// begins. Of any number of simultaneous takers one succeeds.
    ///
    /// Cancel safe: if it was taken all the same, `holder` can take it again at once.
    ///
    /// # Errors
    /// When the database fails; whether it was taken is not known then.
    pub async fn take_lease(&self, holder: &Holder, span: Duration) -> Result<Taken, StoreError> {
        let query = sqlx::query(
            "INSERT INTO controller_lease (singleton, term, holder, holder_api, renewed_at_ms, expires_at_ms)
             SELECT 1, 1, $1, $2, now_ms, now_ms + $3 FROM database_clock WHERE true
             ON CONFLICT (singleton) DO UPDATE SET term = controller_lease.term + 1, holder = excluded.holder,
                 holder_api = excluded.holder_api, renewed_at_ms = excluded.renewed_at_ms,
                 expires_at_ms = excluded.expires_at_ms
             WHERE controller_lease.holder = excluded.holder
                 OR controller_lease.expires_at_ms <= excluded.renewed_at_ms
             RETURNING term",
        );
        let query = query.bind(holder.controller.as_str()).bind(holder.api.as_str()).bind(millis(span));
        match fetch(&self.lease_pool, query).await?.first() {
            Some(row) => Ok(Taken::Yes(Term(unsigned(row.get(0))))),
            None => Ok(Taken::No(self.lease().await?.ok_or(StoreError::NoLease)?)),
        }
    }

    /// Makes the lease end `span` from now, if `term` is still the newest. One that is over, but that nobody took, can be
    /// renewed.
    ///
    /// Cancel safe: at worst it lasts longer than the caller knows.
    ///
    /// # Errors
    /// When the database fails, or holds no lease at all.
    pub async fn renew_lease(&self, term: Term, span: Duration) -> Result<Renewed, StoreError> {
        let query = sqlx::query(
            "UPDATE controller_lease SET renewed_at_ms = clock.now_ms, expires_at_ms = clock.now_ms + $2
             FROM database_clock AS clock WHERE term = $1",
        );
        let query = query.bind(signed(term.0)).bind(millis(span));
        if execute(&self.lease_pool, query).await? == 1 {
            return Ok(Renewed::Yes);
        }
        Ok(Renewed::Lost(self.lease().await?.ok_or(StoreError::NoLease)?))
    }

    /// Ends the lease now, if `term` is still the newest, so that another may take it at once.
    ///
    /// # Errors
    /// When the database fails; the lease then ends by itself.
    pub async fn release_lease(&self, term: Term) -> Result<(), StoreError> {
        // Long ago: over also for a clock that is set back.
        let query = sqlx::query("UPDATE controller_lease SET expires_at_ms = 0 WHERE term = $1");
        execute(&self.lease_pool, query.bind(signed(term.0))).await.map(drop)
    }

    /// The lease, if any controller ever took it.
    ///
    /// # Errors
    /// When the database fails, or names a holder that is none.
    pub async fn lease(&self) -> Result<Option<Lease>, StoreError> {
        let query = sqlx::query(
            "SELECT term, holder, holder_api, expires_at_ms - now_ms FROM controller_lease, database_clock",
        );
        fetch(&self.lease_pool, query).await?.first().map(lease).transpose()
    }
}

/// What a fenced transaction has before it writes.
pub(super) enum Fence {
    /// The lease's lock, until its end, and the database's time.
    Holds { now_ms: i64 },
    /// The term is over; the lease has this one, or 0 if there is none.
    Over { newest: Term },
}

/// The first statement of each transaction that writes: locks the lease and compares its term.
pub(super) async fn fence(connection: &mut AnyConnection, term: Term) -> Result<Fence, sqlx::Error> {
    // A change that changes nothing is the one lock that both databases have; and SQLite, which locks the file with it,
    // would refuse to go on from a read to a write that another was ahead of.
    let query = sqlx::query(
        "UPDATE controller_lease SET term = term RETURNING term, (SELECT now_ms FROM database_clock)",
    );
    let row = query.fetch_all(connection).await?.pop();
    let newest = row.as_ref().map_or(Term(0), |row| Term(unsigned(row.get(0))));
    Ok(match row {
        Some(row) if newest == term => Fence::Holds { now_ms: row.get(1) },
        Some(_) | None => Fence::Over { newest },
    })
}

fn lease(row: &AnyRow) -> Result<Lease, StoreError> {
    let controller = ControllerId::new(row.get::<String, _>(1))
        .map_err(|error| StoreError::Statement(sqlx::Error::Decode(Box::new(error))))?;
    let holder = Holder { controller, api: row.get(2) };
    let left = Duration::from_millis(unsigned(row.get(3)));
    Ok(Lease { term: Term(unsigned(row.get(0))), holder, left })
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}
