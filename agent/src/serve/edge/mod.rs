//! The OpenAI-compatible front of the fleet, on every node.
//!
//! ```text
//! user -> user_port -> Edge::answer_user -> Choice -> Pool -> peer's port or own engine
//!                           |   ^ nothing sent yet? another replica  |
//!                           '---+---- attempt (held head) <----------'
//! peer -> PeerPort -> Edge::answer_peer -> own engine, or 503 with `x-cic-refused`: never on to a third node
//! ```
//! A request is repeated on another replica as long as its client has had no byte: streams are held back until
//! their first event, other answers until they are whole. Which replicas there are says the newest [`Routes`],
//! remembered on disk, so that traffic goes on with no controller anywhere. What happens when there are too few of
//! them, or none, is in `scarcity/`; docs/edge.md tells it case by case.

mod answer;
mod attempt;
mod choice;
mod connection;
mod counts;
mod errand;
mod front;
mod journal;
mod lifeline;
mod pool;
mod pulse;
mod quiet;
mod relay;
mod replicas;
mod request;
mod resume;
mod routes;
mod scarcity;
mod user_port;

pub use answer::{
    CLASS_HEADER, LAST_RESORT_HEADER, NODE_HEADER, REFUSED_HEADER, REQUEST_ID_HEADER, RESTORED_HEADER,
    WAIT_HEADER,
};
pub use counts::CutStreams;
pub use front::{Edge, EdgeSpec, OwnEngine};
pub use journal::{Answered, NotAnswered, UnderWay, Unfinished};
pub use request::IDEMPOTENCY_HEADER;
pub use routes::Routes;
pub use scarcity::{AdmissionLimits, Price, ScarcitySpec, SurgeSpec, SurgeUrl, SurgeUrlError};
pub use user_port::{
    Certificate, CertificateError, Files, FilesError, KeyRing, KeyRingError, Limits, OVERHEAD_HEADER,
    UserPort, UserPortSpec, new_key,
};

#[cfg(test)]
mod tests;
