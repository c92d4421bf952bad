//! What must outlive a controller: operations, deployments, nodes, the term, events, tokens.
//!
//! ```text
//! driver -> StoreQueue (never waits, bounded) -> writer task -> Database (SQLite)
//!    ^                                             |
//!    '--------------- Recorded --------------------'
//! api, provision, ingest -> Database (reads, tokens, certificates)
//! ```
//! While the database fails the writer retries in order; the core is told `Recorded` only of what is stored.

mod database;
mod events;
mod queue;
mod tokens;
mod write;
mod writer;

#[cfg(test)]
mod tests;

pub use database::{Database, StoreError};
pub use events::StoredEvent;
pub use queue::{EVENTS_WAITING_MAX, QueueCounts, StoreQueue, WRITES_WAITING_MAX};
pub use tokens::TokenError;
pub use write::Write;
pub use writer::run as run_writer;
