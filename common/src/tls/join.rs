//! The join token: a secret that lets one node enrol once.
//!
//! Here is only its text and its hash. That it works once is the controller's store's to guard, which keeps
//! nothing but the hash.

use std::fmt;

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

const PREFIX: &str = "cicj-";

/// 256 bits: beyond guessing, so that a hash without salt or stretching is enough.
const SECRET_BYTES: usize = 32;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenError {
    #[error("a join token reads {PREFIX} and {} hexadecimal digits", SECRET_BYTES * 2)]
    Shape,
    #[error("the system gives no random bytes")]
    Random,
}

/// A join token. Its `Debug` hides the secret; its `Display` is the text to hand over.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(String);

impl JoinToken {
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, JoinTokenError> {
        let mut secret = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut secret).map_err(|_| JoinTokenError::Random)?;
        Ok(Self(format!("{PREFIX}{}", hex(&secret))))
    }

    /// # Errors
    /// When `text`, spaces around it removed, is no token.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        let secret = text.strip_prefix(PREFIX).ok_or(JoinTokenError::Shape)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if secret.len() != SECRET_BYTES * 2 || !secret.bytes().all(is_digit) {
            return Err(JoinTokenError::Shape);
        }
        Ok(Self(text.to_owned()))
    }

    /// What a store may keep.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, self.0.as_bytes()).as_ref());
        TokenHash(hash)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({PREFIX}…)")
    }
}

/// SHA-256 of a token's text. Shown as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_a_file_with_a_newline_and_shows_no_secret() {
        let token = JoinToken::generate().unwrap();
        assert_eq!(JoinToken::parse(&format!("{token}\n")).unwrap(), token);
        assert_ne!(JoinToken::generate().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.to_string()[5..]));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "cicj-", "cicj-00", "token", &format!("cicj-{}", "G".repeat(64))] {
            assert!(JoinToken::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_hash_is_plain_sha_256_of_the_text() {
        let token = JoinToken::parse(&format!("cicj-{}", "0".repeat(64))).unwrap();
        // printf 'cicj-%064d' 0 | sha256sum
        let expected = "0b859ed47a273c831bbe1cb7eddbf050b82ce62a34b226de4cec34f3da82a7a9";
        assert_eq!(token.hash().to_string(), expected);
    }
}
