//! The simulator: seeds, the rules every run must keep, and how a broken one is shown.
//!
//! ```text
//! seed --> scenario (fleet, faults) --> run (the world, one happening at a time)
//!                                         |  facts
//!                                         v
//!                                  ledger --> invariants --> outcome --> summary
//! ```
//! A failing seed is shown with its last events and belongs into `seeds.txt` with a reason: those run first.

mod crash;
mod invariants;
mod ledger;
mod rule;
mod run;
pub(crate) mod scenario;
mod seeds;
mod summary;

pub use crash::{Broken, Crashes, Sky, crash_all, crash_everywhere, crash_table, forgetful_sky};
pub use rule::{Rule, Violation};
pub use run::{Outcome, run};
pub use scenario::Scenario;
pub use seeds::kept_seeds;
pub use summary::{Summary, failure_text};
