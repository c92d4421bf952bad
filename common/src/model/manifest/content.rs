//! What one file ought to be.

use std::fmt;
use std::str::FromStr;

use blake3::Hash;
use ring::digest;

use crate::model::tree::Tree;

/// One file, by its length and hashes: one hash at least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// In bytes; some manifests do not say it.
    pub size: Option<u64>,
    pub blake3: Option<Blake3>,
    pub sha256: Option<Sha256>,
}

/// With its pieces, where the manifest has them, a fault is found in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blake3 {
    Whole(Hash),
    Pieces(Tree),
}

impl Blake3 {
    #[must_use]
    pub fn root(&self) -> Hash {
        match self {
            Self::Whole(root) => *root,
            Self::Pieces(tree) => tree.root(),
        }
    }
}

/// Written and read as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_digest(&digest::digest(&digest::SHA256, bytes))
    }

    /// `digest` is one of SHA-256.
    fn from_digest(digest: &digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl From<digest::Context> for Sha256 {
    /// What a context of SHA-256 has come to.
    fn from(context: digest::Context) -> Self {
        Self::from_digest(&context.finish())
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Sha256 {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}
