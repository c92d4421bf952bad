//! The port for users: HTTP/1.1 and HTTP/2, plain or over TLS, with keys, bounds and an access log.
//!
//! ```text
//! accept -> Places -> Line (Wire: deadlines of the socket; Flows: bodies on their way out)
//!              request -> Gate: key, allowance, class -> Edge::answer_user, with its Visit -> Outflow -> access line
//! files  -> Files: keys and certificate, read again when they change
//! ```
//! Clients are strangers: whatever one of them sends or does not send costs a bounded amount of memory for a bounded
//! time, and none of it reaches a replica unread.

mod access;
mod allowance;
mod connection;
mod denial;
mod files;
mod gate;
mod keys;
mod limits;
mod outflow;
mod places;
mod port;
mod stopwatch;
mod tls;
mod upload;
mod vigil;
mod visit;
mod watched;

pub use files::{Files, FilesError};
pub use keys::{KeyRing, KeyRingError, new_key};
pub use limits::Limits;
pub use port::{UserPort, UserPortSpec};
pub use tls::{Certificate, CertificateError};

pub(super) use denial::Denial;
pub(super) use upload::Upload;
pub(super) use visit::Visit;

/// Our own time for a request until its answer's head, in microseconds.
pub use gate::OVERHEAD_HEADER;
