//! Brings a directory to what a manifest says, from an object store: all of a model, or the pieces of it that are wrong.
//!
//! ```text
//! check: findings -> refused, or wanted: each file, and which of its pieces lie in the staging folder or are right in the
//!                    directory -> transfer -> staging: published
//!                                   '- runs: what is lacking -> bring: who gives it -> feed: hashed and written as it comes
//!                                                                 '- neighbour: a node that serves the model
//! ```
//! A piece that is there and right is never fetched, whoever left it: a run that was killed, or the file with a flipped byte.
//! A file in the directory is never written to: another takes its place once it is whole.

mod bring;
mod feed;
mod neighbour;
mod runs;
mod staging;
mod target;
#[cfg(test)]
mod tests;
mod transfer;
mod wanted;

pub use neighbour::{Address, Neighbours};
pub use staging::Busy;
pub use transfer::{Fetched, Places, fetch, manifest_of, runtime, store_at};
