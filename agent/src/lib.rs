//! The agent of one node.
//!
//! ```text
//! source/ (gpu, host, engine, spot) -> core/ (pure) -> effect/ (engine, model, push)
//!                                        |
//!                                      serve/ (poll and peer port, edge)
//! ```
//! Sources and effects translate between the world and [`core`]; only [`core`] decides. `driver` joins them.

pub mod checkpoints;
pub mod config;
pub mod core;
pub mod driver;
pub mod effect;
pub mod model_files;
pub mod preflight;
pub mod run;
pub mod serve;
pub mod source;
pub mod state;
pub mod status;
