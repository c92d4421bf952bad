//! The OpenAI-compatible front of the fleet, on every node.
//!
//! ```text
//! user -> UserPort -> Edge::from_user -> Choice -> Pool -> peer's port or own engine
//!                         |   ^ nothing sent yet? another replica  |
//!                         '---+---- attempt (held head) <----------'
//! peer -> PeerPort -> Edge::from_peer -> own engine, or 503 with `x-cic-refused`: never on to a third node
//! ```
//! A request is repeated on another replica as long as its client has had no byte: streams are held back until
//! their first event, other answers until they are whole. Which replicas there are says the newest [`Routes`],
//! remembered on disk, so that traffic goes on with no controller anywhere.

mod answer;
mod attempt;
mod choice;
mod counts;
mod errand;
mod front;
mod lifeline;
mod pool;
mod relay;
mod request;
mod resume;
mod routes;
mod user_port;

pub use answer::{CLASS_HEADER, LAST_RESORT_HEADER, NODE_HEADER, REFUSED_HEADER, REQUEST_ID_HEADER};
pub use counts::CutStreams;
pub use front::{Edge, EdgeSpec, OwnEngine};
pub use routes::Routes;
pub use user_port::UserPort;

#[cfg(test)]
mod tests;
