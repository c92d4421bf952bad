//! The control plane's own health: what a leader cannot work without, and what only people have to know.
//!
//! ```text
//! check (database, provider, own API, snapshots, Prometheus, log sink, Redis) -> tally (three in a row) -> monitor
//!        monitor -> events, /v1/health, /metrics; a critical one on a leader with a standby -> hand_over_wanted
//! ```

mod check;
mod every;
mod monitor;
mod tally;

pub use check::{Check, Target};
pub use every::every;
pub use monitor::{CheckState, Checks, Monitor};
pub use tally::Severity;
