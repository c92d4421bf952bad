//! A model's files on their way into an object store, from a directory or from another store.
//!
//! ```text
//! directory -> manifest (read, or made by hashing) -+
//! store -----> its manifest ------------------------+-> push: what the store lacks, each piece compared before it is sent
//!                                                         '-> the manifest, last: without it nobody fetches
//! ```

mod buffers;
mod directory;
mod origin;
mod push;
#[cfg(test)]
mod tests;

pub use directory::manifest_of_directory;
pub use origin::Origin;
pub use push::{Published, Terms, manifest_in, publish};
