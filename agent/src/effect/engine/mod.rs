//! The engine process.
//!
//! ```text
//! Keeper -> Launcher (cic-agent engine-exec: session, cgroup, exec) -> engine, output to engine.log
//!    |  \-> Record (engine.json), by which the next run finds the engine and adopts it
//!    '---> exit watch -> Sweep (session, cgroup and tag: nothing of an engine outlives it)
//! ```
//! The engine belongs to its node, not to the agent's run: it is no child in any sense that would end it with
//! the agent. What ties it to the node is [`Tag`], two variables in its environment, which its own children
//! inherit and which are there even if the agent died before it could write [`Record`].

mod autopsy;
mod cgroup;
mod check;
pub mod crashes;
mod fit;
mod flags;
mod installed;
mod keeper;
mod launch;
mod log;
mod pidfd;
mod procfs;
mod record;
mod sweep;

pub use check::Checker;
pub use keeper::{Keeper, KeeperSpec};
pub use launch::{EXEC_COMMAND, ExecArgs, exec};
pub use record::Record;
pub use sweep::Tag;
