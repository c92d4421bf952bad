//! Snapshots of the store in an object store, for the day on which the database is lost.
//!
//! ```text
//! store (everything durable, of one moment) -> snapshot (of which fleet) -> object -> PREFIX/snapshots/TERM-MILLISECONDS
//!    ^                                                                                      |
//!    '------------------------ restore: the newest that verifies ---------------------------'
//! ```
//! The leader takes one every five minutes and keeps the last ten. `cic-controller backup` and `cic-controller restore` are
//! for people. The fleet's authority (its key) is in no snapshot.

mod command;
mod name;
mod regular;
mod restore;
mod save;
mod snapshot;

pub use command::{CommandError, restore, take};
pub use name::{NameError, SnapshotName};
pub use regular::run;
pub use restore::{Chosen, Nothing};
pub use save::{Backup, BackupError, Saved};
pub use snapshot::{Fault, FleetMark};
