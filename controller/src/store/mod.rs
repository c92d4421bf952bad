//! What must outlive a controller: operations, deployments, nodes, the lease, events, tokens.
//!
//! ```text
//! driver -> StoreQueue (never waits, bounded) -> writer task -> Database (SQLite or PostgreSQL)
//!    ^                                             |  fenced by the lease's term
//!    '--------------- Recorded --------------------'
//! api, provision, ingest -> Database (reads, tokens, certificates)
//! ```
//! While the database fails the writer retries in order; the core is told `Recorded` only of what is stored. A writer
//! whose term is over stores nothing and ends.

mod address;
mod copy;
mod database;
mod events;
mod lease;
mod loan;
mod queue;
mod retention;
mod snapshots;
mod sync;
mod tokens;
mod write;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use address::{Address, AddressError};
pub use copy::{LoadError, Loaded, StateCopy};
pub use database::{Database, StoreError};
pub use events::{PendingEvent, StoredEvent};
pub use lease::{Holder, Lease, Renewed, Taken};
pub use queue::{EVENTS_WAITING_MAX, QueueCounts, StoreQueue, WRITES_WAITING_MAX};
pub use snapshots::StoredSnapshot;
pub use sync::{StoredCluster, StoredSync};
pub use tokens::TokenError;
pub use write::Write;
pub use writer::{Ended, run as run_writer};
