//! Checkpoints: what a node in this one's place would go on with, in an object store.
//!
//! ```text
//! NODE/checkpoints/INCARNATION-MILLISECONDS      assignment, model digest, requests under way, metrics; the last ten
//! answers/DIGEST                                 answers of requests that a successor ran again, by idempotency key
//! ```
//! Weights are never copied: they do not change, and the digest names them. Every object is written whole under a name of
//! its own, and carries its length and SHA-256. There may be a second store, in another region: each checkpoint goes to
//! both, and is read from whichever has it.

mod answers;
mod record;
mod restore;
mod save;
mod succeed;

pub use answers::{Answers, KeptAnswer, Question};
pub use cic_common::objects::{StoreError, Stores};
pub use record::Checkpoint;
pub use restore::{Found, Held, all_of, newest};
pub use save::{Checkpoints, Snapshot};
pub use succeed::{NoCore, Successor};

#[cfg(test)]
mod tests;
