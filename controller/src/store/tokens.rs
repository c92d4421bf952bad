//! Join tokens, each good for one enrolment of one node, and the list of certificates issued.

use std::fmt;
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::unix_ms;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use sqlx::Row as _;

use super::database::{Database, StoreError, signed, unsigned, within};

/// Entropy of a token. 32 bytes cannot be guessed.
const TOKEN_BYTES: usize = 32;

/// A secret that lets one node enrol once. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(String);

impl JoinToken {
    /// The text that goes into the node's token file.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

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
        let mut bytes = [0_u8; TOKEN_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::Randomness)?;
        let token = JoinToken(hex(&bytes));
        let now_ms = unix_ms();
        let valid_ms = u64::try_from(valid_for.as_millis()).unwrap_or(u64::MAX);
        within(
            sqlx::query(
                "INSERT INTO join_tokens (hash, node, created_at_ms, expires_at_ms) VALUES (?, ?, ?, ?)",
            )
            .bind(hash(token.secret()))
            .bind(node.as_str())
            .bind(signed(now_ms))
            .bind(signed(now_ms.saturating_add(valid_ms)))
            .execute(&self.pool),
        )
        .await?;
        Ok(token)
    }

    /// Uses up `token` for `node`. Of any number of simultaneous uses one succeeds.
    ///
    /// # Errors
    /// Why the token is no good; [`TokenError::Store`] is worth another try, the others are not.
    pub async fn consume_join_token(&self, token: &str, node: &NodeId) -> Result<(), TokenError> {
        let now_ms = signed(unix_ms());
        let hash = hash(token);
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

    /// Keeps for audit that a certificate was issued.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub async fn save_certificate(
        &self,
        serial: &str,
        node: &NodeId,
        expires_unix_ms: u64,
    ) -> Result<(), StoreError> {
        within(
            sqlx::query(
                "INSERT INTO certificates (serial, node, issued_at_ms, expires_at_ms) VALUES (?, ?, ?, ?)
                 ON CONFLICT (serial) DO NOTHING",
            )
            .bind(serial)
            .bind(node.as_str())
            .bind(signed(unix_ms()))
            .bind(signed(expires_unix_ms))
            .execute(&self.pool),
        )
        .await
        .map(|_| ())
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

fn hash(token: &str) -> String {
    hex(digest(&SHA256, token.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
