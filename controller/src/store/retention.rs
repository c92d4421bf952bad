//! What is forgotten, and when. By the database's clock, so that a controller with a wrong date forgets nothing.

use std::time::Duration;

use cic_common::id::Term;
use sqlx::AnyConnection;
use sqlx::Connection as _;

use super::database::{Database, StoreError};
use super::lease::{Fence, fence};
use super::loan::{Loan, within};

/// Newest events kept. A busy fleet of 1,000 nodes writes some 100,000 a day; a million is 200 MB of disk. The
/// database refuses to forget younger ones: `migrations/*/0002_own.sql` has the same number.
const EVENTS_KEPT: i64 = 1_000_000;

/// Closed operations, and certificates that nobody can use any more: a quarter, for whoever asks what happened.
const OPERATIONS_KEPT: Duration = days(90);
const CERTIFICATES_KEPT: Duration = days(90);

/// Join tokens that are of no use any more.
const TOKENS_KEPT: Duration = days(30);

/// Rows of a table that one transaction forgets: some tens of milliseconds, in which no write can be stored.
const BATCH: i64 = 1000;

impl Database {
    /// Forgets some of what is too old, if `term` is still the newest, and tells how many rows. Zero: there is no more.
    ///
    /// # Errors
    /// As [`Database::store`].
    pub async fn forget_old(&self, term: Term) -> Result<u64, StoreError> {
        let (fence, rows) = within(async {
            let mut loan = Loan::take(&self.pool).await?;
            let mut transaction = loan.connection().begin().await?;
            let fence = fence(&mut transaction, term).await?;
            let rows = match fence {
                Fence::Holds { now_ms } => forget(&mut transaction, now_ms).await?,
                Fence::Over { .. } => 0,
            };
            transaction.commit().await?;
            loan.give_back();
            Ok((fence, rows))
        })
        .await?;
        match fence {
            Fence::Holds { .. } => Ok(rows),
            Fence::Over { newest } => Err(StoreError::Fenced { term, newest }),
        }
    }
}

async fn forget(connection: &mut AnyConnection, now_ms: i64) -> Result<u64, sqlx::Error> {
    let before = |kept: Duration| now_ms.saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
    let events = sqlx::query(
        "DELETE FROM events WHERE id IN
         (SELECT id FROM events WHERE id <= (SELECT max(id) FROM events) - $1 ORDER BY id LIMIT $2)",
    )
    .bind(EVENTS_KEPT);
    // Never the newest: the ids of the next ones are counted from it.
    let operations = sqlx::query(
        "DELETE FROM operations WHERE id IN
         (SELECT id FROM operations WHERE is_open = 0 AND updated_at_ms < $1
          AND id < (SELECT max(id) FROM operations) LIMIT $2)",
    )
    .bind(before(OPERATIONS_KEPT));
    let tokens = sqlx::query(
        "DELETE FROM join_tokens WHERE hash IN
         (SELECT hash FROM join_tokens WHERE used_at_ms < $1 OR expires_at_ms < $1 LIMIT $2)",
    )
    .bind(before(TOKENS_KEPT));
    let certificates = sqlx::query(
        "DELETE FROM certificates WHERE serial IN
         (SELECT serial FROM certificates WHERE expires_at_ms < $1 LIMIT $2)",
    )
    .bind(before(CERTIFICATES_KEPT));
    let mut rows = 0;
    for query in [events, operations, tokens, certificates] {
        rows += query.bind(BATCH).execute(&mut *connection).await?.rows_affected();
    }
    Ok(rows)
}

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 3600)
}
