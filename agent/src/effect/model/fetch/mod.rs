//! Brings a directory to what a manifest says, from an object store: all of a model, or the pieces of it that are wrong.
//!
//! ```text
//! check: findings -> place: where files lie until they are whole -> want: pieces that are not there
//!                     -> transfer: ranged reads, each piece hashed before it is written -> place: published
//! ```
//! A piece that is there and right is never fetched, whoever left it: a run that was killed, or the file with a flipped byte.

mod place;
#[cfg(test)]
mod tests;
mod transfer;
mod want;

pub use transfer::{Fetched, fetch, manifest_of};
