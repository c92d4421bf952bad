//! Asking the agents: the second witness, over another path than their pushes.
//!
//! ```text
//! core -- Poll (routine) --> [Poller] -> one task a node, one warm connection --> Polled, PollChannelLost
//!      -- Poll (urgent) ---> [Poller] -> fresh connections, two attempts -------> Polled
//! ```
//! When an agent is killed its kernel closes the warm connection, which is how a death is noticed within
//! milliseconds, long before a heartbeat is missed.

mod ask;
mod connection;
mod poller;

pub(crate) use connection::Connection;
pub use poller::{PollCounts, Poller};
