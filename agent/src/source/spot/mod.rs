//! The cloud's word that this VM will be taken.
//!
//! `watch` finds out whose machine this is (`detect`) and runs one task for each of that cloud's sources. A source is
//! asked over its own connection (`metadata`), its answer is understood by its cloud's module, and its `ledger` tells
//! each notice once, when it is withdrawn, and when the source cannot be read. [`mod@file`] reads notices from a file that
//! a hook, a script or `cic fault NODE notice` writes; [`shutdown`] makes one of init's wish that the agent ends.

mod aws;
mod azure;
mod detect;
pub mod file;
mod gcp;
mod ledger;
mod metadata;
mod moment;
pub mod shutdown;
mod watch;

pub use self::metadata::ADDRESS;
pub use self::watch::{Pace, SpotSpec, SpotWords, start};
