//! The agent's connections to the controllers, one to each, and the enrolment that comes before.
//!
//! ```text
//! core --report--> Pulse --beat--> [session] --datagram--> controller
//!      --tell----> Outbox (until acknowledged) --stream--> controller
//!      <-LinkEvent------------------ [session] <--stream-- controller
//! ```
//! [`Links`] runs one task a controller: dial, talk, and dial again with growing waits. A session is three loops
//! over one connection (read, write, beat); whichever ends first ends it. The certificate renews itself over any
//! session.

mod dial;
mod enrol;
mod event;
mod links;
mod outbox;
mod pulse;
mod renewal;
mod session;

pub use enrol::{EnrolError, EnrolSpec, enrol, load_identity};
pub use event::LinkEvent;
pub use links::{LinkSpec, Links};
pub use pulse::Pulse;
