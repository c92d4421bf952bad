//! The only place that spawns tasks.
//!
//! Every task has a name and a [`Kind`]; the kind fixes what its end means. [`Supervisor::stop`] cancels the
//! token that every task was given, waits until the deadline and names the tasks that are late.

mod supervisor;

pub use supervisor::{Kind, Supervisor, TaskHandle, TaskResult};
