//! `cargo xtask tidy`: the rules of this repository that clippy cannot see.
//!
//! ```text
//! tree (files of the repository) -> source (code without comments and strings, test regions, functions)
//!                                       -> the rules: purity, homes, arrows, shape, tests, text, links -> finding
//! ```
//! Each rule is a function from the [`tree::Tree`] to [`finding::Finding`]s, tested on small trees in memory.

mod arrows;
mod finding;
mod homes;
mod links;
mod lint;
mod purity;
mod shape;
mod source;
mod text;
mod tree;
mod waits;

pub(crate) use lint::run;
