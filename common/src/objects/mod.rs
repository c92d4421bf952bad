//! Objects in an object store: where they are kept, and how one shows that it is whole.
//!
//! ```text
//! value -> object (a line with kind, version, checksum and length, then JSON) -> store (S3, GCS, Azure, a directory)
//! ```
//! The agents keep their checkpoints so, the controllers their snapshots.

mod object;
mod store;

pub use object::{ObjectFault, seal, sha256_hex, unseal};
pub use store::{Store, StoreError, Stores};
