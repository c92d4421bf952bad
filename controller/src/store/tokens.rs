//! Join tokens, each good for one enrolment of one node, and how many certificates a node has had.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::tls::{JoinToken, TokenHash};
use sqlx::Row as _;

use super::database::{Database, StoreError, signed, unsigned};

/// A thousand years: the sum with any date of today is still a number for the database.
const VALID_MS_MAX: u64 = 1000 * 365 * 24 * 3600 * 1000;

/// Why a token does not let its bearer in.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("join token is unknown")]
    Unknown,
    #[error("join token belongs to another node")]
    OtherNode,
    #[error("join token was already used")]
    Used,
    #[error("join token has expired")]
    Expired,
    #[error("join token cannot be checked")]
    Store(#[from] StoreError),
}

impl Database {
    /// Makes a token for `node` that is good for `valid_for`.
    ///
    /// # Errors
    /// When it cannot be stored, or the operating system gives no randomness.
    pub async fn create_join_token(
        &self,
        node: &NodeId,
        valid_for: Duration,
    ) -> Result<JoinToken, StoreError> {
        let token = JoinToken::generate().map_err(|_| StoreError::Randomness)?;
        let valid_ms = u64::try_from(valid_for.as_millis()).unwrap_or(u64::MAX).min(VALID_MS_MAX);
        let query = sqlx::query(
            "INSERT INTO join_tokens (hash, node, created_at_ms, expires_at_ms)
             SELECT $1, $2, now_ms, now_ms + $3 FROM database_clock",
        );
        self.execute(query.bind(token.hash().to_string()).bind(node.as_str()).bind(signed(valid_ms))).await?;
        Ok(token)
    }

    /// Uses up the token with this `hash` for `node`. Of any number of simultaneous uses one succeeds.
    ///
    /// # Errors
    /// Why the token is no good; [`TokenError::Store`] is worth another try, the others are not.
    pub async fn consume_join_token(&self, hash: &TokenHash, node: &NodeId) -> Result<(), TokenError> {
        let hash = hash.to_string();
        let query = sqlx::query(
            "UPDATE join_tokens SET used_at_ms = clock.now_ms FROM database_clock AS clock
             WHERE hash = $1 AND node = $2 AND used_at_ms IS NULL AND expires_at_ms > clock.now_ms",
        );
        if self.execute(query.bind(&hash).bind(node.as_str())).await? == 1 {
            return Ok(());
        }
        let query = sqlx::query("SELECT node, used_at_ms FROM join_tokens WHERE hash = $1");
        let row = self.fetch(query.bind(&hash)).await?.pop();
        Err(match row {
            None => TokenError::Unknown,
            Some(row) if row.get::<&str, _>(0) != node.as_str() => TokenError::OtherNode,
            Some(row) if row.get::<Option<i64>, _>(1).is_some() => TokenError::Used,
            Some(_) => TokenError::Expired,
        })
    }

    /// Notes a certificate in the audit list. Noting it again changes nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note_certificate(
        &self,
        serial: &str,
        node: &NodeId,
        expires_at_ms: u64,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO certificates (serial, node, issued_at_ms, expires_at_ms)
             SELECT $1, $2, now_ms, $3 FROM database_clock WHERE true ON CONFLICT (serial) DO NOTHING",
        );
        let query = query.bind(serial).bind(node.as_str()).bind(signed(expires_at_ms));
        self.execute(query).await.map(drop)
    }

    /// Number of certificates issued to `node`, without those that retention has forgotten.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn certificate_count(&self, node: &NodeId) -> Result<u64, StoreError> {
        let query = sqlx::query("SELECT count(*) FROM certificates WHERE node = $1").bind(node.as_str());
        Ok(self.fetch(query).await?.first().map_or(0, |row| unsigned(row.get(0))))
    }
}
