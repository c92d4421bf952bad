//! Objects in an object store: where they are kept, and how one shows that it is whole.
//!
//! ```text
//! value -> object (a line with kind, version, checksum and length, then JSON) -> store (S3, GCS, Azure, a directory)
//! ```
//! The agents keep their checkpoints so, the controllers their snapshots. Models, whose files are what they are, are written
//! as an upload, in parts.

mod object;
mod store;
mod upload;

pub use object::{ObjectFault, seal, sha256_hex, unseal};
pub use store::{Store, StoreError, Stores};
pub use upload::{Head, Labels, Upload, part_bytes};
