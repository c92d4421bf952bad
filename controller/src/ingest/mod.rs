//! The agents' QUIC port: who may come in, what they say, what they are told.
//!
//! ```text
//! [endpoint] -- cic-enrol/1 --> [enrol] -> JoinDesk (store) -> authority
//!      |------ cic/1 ---------> [session] -- Connected, Told, Disconnected --> core's queue
//!                                   |------- newest heartbeat -> [roster] -- one batch a tick --> core's queue
//! core -- Send, PublishRoutes --> [Ingest] -> [roster] -> session's queue -> agent
//! ```
//! The [`roster`](Ingest) is the one place that knows who is connected; everything that enters the core's queue
//! about a connection enters it under the roster's lock, so that the order there is the order it happened in.
//! What is not let in is counted by kind and logged once a peer in [`Refusals`].

mod arrivals;
mod endpoint;
mod enrol;
mod outgoing;
mod refusal;
mod roster;
mod sequence;
mod session;
mod tables;

pub use endpoint::{Ingest, IngestError, IngestSpec};
pub use enrol::{IssueLog, JoinDesk, JoinFuture, JoinRefusal};
pub use refusal::{Refusal, Refusals};
