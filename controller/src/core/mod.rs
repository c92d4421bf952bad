//! What the controller believes and decides, without a clock, a socket or a database.
//!
//! ```text
//! Event -> evidence (who said what, when) -> belief (the table) -> verdicts (route out, replace)
//!                                                                     |  brake
//!       <- Action  <- operation (recorded, then performed)  <- plan --'
//! ```
//! [`Fleet::step`] takes one [`Event`] and the time and appends [`Action`]s; [`Fleet::deadline`] says when it
//! wants a tick. Only a leader acts; a standby is the same core, following the rows of the store (`rows`). Shells only translate. The same events always give the same actions.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod action;
mod agreement;
mod belief;
mod brake;
mod conclude;
mod deployment;
mod event;
mod evidence;
mod flap;
mod fleet;
mod hear;
mod instance;
mod launch;
mod need;
mod node;
mod nodes;
mod open;
mod operation;
mod orphan;
mod perform;
mod plan;
mod price;
mod reached;
mod recovery;
mod rhythm;

mod routing;
mod rows;
mod ssh;
mod succession;
mod suspicion;
mod sync;
#[cfg(test)]
mod tests;
pub mod timing;
mod told;
mod trail;
mod verdict;
mod view;
mod warning;
mod xid;

pub use action::{Action, Message};
pub use belief::{Belief, Cloud, Freshness, judge};
pub use brake::{Brake, BrakeRules, Hold};
pub use deployment::Deployment;
pub use event::{Event, NodeRecord, PollFault, Polled, Restored};
pub use fleet::Fleet;
pub use instance::{CloudFault, Instance, InstanceState};
pub use operation::{Operation, OperationKind, OperationState};
pub use orphan::{OrphanView, OrphanWish};
pub use price::{PriceError, UsdPerHour};
pub use rhythm::Rhythm;
pub use ssh::SshWord;
pub use sync::{ClusterRecord, ClusterStatus, Drift, SyncRecord, SyncState};
pub use timing::Timing;
pub use trail::{EventRecord, Severity, TRAIL_ENTRIES_MAX};
pub use verdict::{Cause, Leaving};
pub use view::{DeploymentView, NodeView, View};
pub use xid::XidCount;
