//! The simulator, the harness of the tests with real processes, and fakes of the clouds' metadata services.

pub mod fakes;
pub mod process;
pub mod sim;
pub mod world;
