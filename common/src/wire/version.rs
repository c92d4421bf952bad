//! Which versions of the wire this build speaks.

/// The version this build writes.
pub const VERSION: u16 = 1;

/// The oldest version this build reads: the newest two are spoken, and there is only one so far.
pub const OLDEST: u16 = 1;

/// TLS application protocol of agents that have a certificate.
///
/// Its number is the protocol's, not the frames': it changes only when a peer could not even read a `Hello`.
pub const ALPN: &[u8] = b"cic/1";

/// TLS application protocol of agents that come for their first certificate.
pub const ALPN_ENROL: &[u8] = b"cic-enrol/1";

/// Whether a frame of `version` can be read by this build.
#[must_use]
pub fn is_spoken(version: u16) -> bool {
    (OLDEST..=VERSION).contains(&version)
}
