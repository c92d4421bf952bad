//! Every byte of a model's files against its manifest, and the manifest of a directory that is known to be good.
//!
//! ```text
//! walk: files -> job: what of each is to be hashed -> hash: threads, each the next piece -> check: findings
//!                        ^- ledger: what was right and is unchanged                       '-> make: a manifest
//! ```

mod check;
mod finding;
mod hash;
mod ledger;
mod make;
#[cfg(test)]
mod tests;

pub(super) use check::digest_of;
pub use check::{Checked, check, read_manifest};
pub use finding::{Finding, Wrong};
pub use hash::{Effort, Progress};
pub(super) use hash::{Hashed, Job, Kind, hash};
pub use ledger::Ledger;
pub(super) use ledger::Stamp;
pub use make::make;
