//! Reaching for a node whose agent does not speak: other ways to the machine than its two paths.
//!
//! ```text
//! core -- Explain -------> [Reach] -> banner: who listens at the ssh port ------------> Explained
//!      -- CommandByPoll -> [Reach] -> command: POST on the agent's mTLS port ---------> CommandAnswered
//!      -- RestartBySsh --> [Reach] -> ssh: the system's client, a fixed command ------> RestartedBySsh
//! ```
//! Each act runs beside the driver, has a deadline, and is answered once. A host comes from the node's own words, so it
//! is looked at before it is dialled or handed to a program (`host`).

mod banner;
mod command;
mod host;
mod shell;
mod ssh;

pub use shell::{Reach, ReachSpec};
pub use ssh::{DEFAULT_COMMAND, HostKeys, SshSpec};
