//! Who is who: the certificate authority, identities, enrolment and renewal.
//!
//! ```text
//! JoinToken --+                         +-> Identity (key + chain in one file, hot-swapped) -> config -> sockets
//! PendingKey -+-> CertificateAuthority -+-> renewed the same way at two thirds of its life
//! ```
//! [`peer`] reads from a certificate whose it is; identity is the key and that name, never an address.
//! [`config`] makes the rustls and quinn configurations, all TLS 1.3 and mutual; [`quic`] the transport's bounds
//! and the key that lets a restarted controller reset the connections of its former self.

pub mod authority;
pub mod config;
pub mod identity;
pub mod join;
pub mod peer;
pub mod quic;
mod secret_file;
mod trust;

pub use authority::{CertificateAuthority, Issued};
pub use identity::{Identity, PendingKey, Validity};
pub use join::{JoinToken, TokenHash};
pub use peer::Peer;
pub use secret_file::write_secret;
pub use trust::{Trust, TrustError};
