//! Join tokens, each good for one enrolment of one node, and how many certificates a node has had.

use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::unix_ms;
use cic_common::tls::{JoinToken, TokenHash};
use sqlx::Row as _;

use super::database::{Database, StoreError, signed, unsigned, within};

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
        let now_ms = unix_ms();
        let valid_ms = u64::try_from(valid_for.as_millis()).unwrap_or(u64::MAX);
        within(
            sqlx::query(
                "INSERT INTO join_tokens (hash, node, created_at_ms, expires_at_ms) VALUES (?, ?, ?, ?)",
            )
            .bind(token.hash().to_string())
            .bind(node.as_str())
            .bind(signed(now_ms))
            .bind(signed(now_ms.saturating_add(valid_ms)))
            .execute(&self.pool),
        )
        .await?;
        Ok(token)
    }

    /// Uses up the token with this `hash` for `node`. Of any number of simultaneous uses one succeeds.
    ///
    /// # Errors
    /// Why the token is no good; [`TokenError::Store`] is worth another try, the others are not.
    pub async fn consume_join_token(&self, hash: &TokenHash, node: &NodeId) -> Result<(), TokenError> {
        let now_ms = signed(unix_ms());
        let hash = hash.to_string();
        let used = within(
            sqlx::query(
                "UPDATE join_tokens SET used_at_ms = ?1
                 WHERE hash = ?2 AND node = ?3 AND used_at_ms IS NULL AND expires_at_ms > ?1",
            )
            .bind(now_ms)
            .bind(&hash)
            .bind(node.as_str())
            .execute(&self.pool),
        )
        .await?;
        if used.rows_affected() == 1 {
            return Ok(());
        }
        let row = within(
            sqlx::query("SELECT node, used_at_ms FROM join_tokens WHERE hash = ?")
                .bind(&hash)
                .fetch_optional(&self.pool),
        )
        .await?;
        Err(match row {
            None => TokenError::Unknown,
            Some(row) if row.get::<&str, _>(0) != node.as_str() => TokenError::OtherNode,
            Some(row) if row.get::<Option<i64>, _>(1).is_some() => TokenError::Used,
            Some(_) => TokenError::Expired,
        })
    }

    /// Number of certificates ever issued to `node`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn certificate_count(&self, node: &NodeId) -> Result<u64, StoreError> {
        let query = sqlx::query("SELECT count(*) FROM certificates WHERE node = ?").bind(node.as_str());
        Ok(unsigned(within(query.fetch_one(&self.pool)).await?.get(0)))
    }
}
