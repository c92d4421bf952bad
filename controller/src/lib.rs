//! The controller of a fleet.
//!
//! ```text
//! ingest/ poll/ -> core/ (evidence, belief, plan) -> store/ provision/
//!                    |
//!                  view -> api/ -> cli/
//! ```
//! Shells translate between the world and [`core`]; only [`core`] decides. `driver` joins them.

pub mod core;
pub mod provision;
pub mod store;
