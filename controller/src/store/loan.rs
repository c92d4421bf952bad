//! A connection on loan from the pool: what was abandoned in the middle of a statement is closed, not lent again.

use std::future::Future;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Any, Error};
use sqlx::{AnyConnection, AnyPool};

use super::database::StoreError;

/// A statement that takes longer means a disk, a lock or a network that does not answer. A commit with
/// `synchronous=FULL` took 2 to 30 ms on the disks tried. Also what connecting may take.
pub(super) const STATEMENT_WITHIN: Duration = Duration::from_secs(5);

/// A connection. Unless it is given back it is closed at once when this is dropped: the pool would first wait for the
/// answer to the statement that is under way in it, for a quarter of an hour when the network is gone.
pub(super) struct Loan(Option<PoolConnection<Any>>);

impl Loan {
    /// Takes a connection out of `pool`, which opens one if none is idle.
    pub(super) async fn take(pool: &AnyPool) -> Result<Self, Error> {
        Ok(Self(Some(pool.acquire().await?)))
    }

    pub(super) fn connection(&mut self) -> &mut AnyConnection {
        self.0.as_mut().expect("it is there until it is given back, which consumes the loan")
    }

    /// For the next one. Only when the last statement has ended.
    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// Waits for statements, but not for ever.
pub(super) async fn within<T>(statements: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(STATEMENT_WITHIN, statements).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StoreError::Timeout(STATEMENT_WITHIN)),
    }
}
