//! The simulator and the harness of the tests with real processes.

pub mod process;
pub mod sim;
pub mod world;
