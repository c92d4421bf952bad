//! The controller of a fleet.
//!
//! ```text
//! ingest/ poll/ -> core/ (evidence, belief, plan) -> store/ provision/
//!                    |
//!                  view -> api/ -> cli/
//! ```
//! Shells translate between the world and [`core`]; only [`core`] decides. `driver` joins them.

pub mod api;
pub mod backup;
pub mod cli;
pub mod config;
pub mod core;
pub mod driver;
pub mod ha;
pub mod health;
pub mod histogram;
pub mod identity;
pub mod ingest;
pub mod links;
pub mod poll;
pub mod ports;
pub mod provision;
pub mod publish;
pub mod reach;
pub mod record;
pub mod serve;
pub mod standing;
pub mod store;
mod threads;
pub mod views;
