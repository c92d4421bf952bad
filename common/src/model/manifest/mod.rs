//! What the files of a model ought to be, byte for byte.
//!
//! - `content`: one file's hashes.
//! - `list`: the files of a model, and the rules for their names.
//! - `native`: ours, `cic-manifest.json`.
//! - `foreign`: manifests of others: OpenSSF model signing, and plain lists.

mod content;
mod foreign;
mod list;
mod native;
#[cfg(test)]
mod tests;

pub use content::{Blake3, Content, Sha256};
pub use list::{MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, ManifestFault, SIGNATURE_NAME};
