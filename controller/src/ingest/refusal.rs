//! What was not let in: counted always, logged once a peer and kind.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use cic_common::wire::close::CloseCode;
use cic_common::wire::frame::FrameError;
use tracing::{debug, warn};

/// Pairs of peer and kind that are remembered as logged. Beyond that a flood from many addresses is only counted.
const LOGGED_MAX: usize = 1024;

/// Why somebody or something was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// The TLS handshake failed: another authority, an expired certificate, no common protocol.
    Handshake,
    NoCertificate,
    /// A certificate of ours that is no node's.
    NotANode,
    /// The `Hello` names another node than the certificate.
    WrongName,
    Garbage,
    Oversized,
    Version,
    OlderIncarnation,
    /// Unknown, used, expired or another node's join token.
    Token,
    /// A signing request that is none.
    Request,
    /// Nothing was said in time.
    Late,
    /// No room for another connection.
    Busy,
}

impl Refusal {
    pub const ALL: [Self; 12] = [
        Self::Handshake,
        Self::NoCertificate,
        Self::NotANode,
        Self::WrongName,
        Self::Garbage,
        Self::Oversized,
        Self::Version,
        Self::OlderIncarnation,
        Self::Token,
        Self::Request,
        Self::Late,
        Self::Busy,
    ];

    /// Label of the counter.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::NoCertificate => "no_certificate",
            Self::NotANode => "not_a_node",
            Self::WrongName => "wrong_name",
            Self::Garbage => "garbage",
            Self::Oversized => "oversized",
            Self::Version => "version",
            Self::OlderIncarnation => "older_incarnation",
            Self::Token => "token",
            Self::Request => "request",
            Self::Late => "late",
            Self::Busy => "busy",
        }
    }

    /// How the connection is closed.
    pub(super) fn close_code(self) -> CloseCode {
        match self {
            Self::NoCertificate => CloseCode::NoCertificate,
            Self::NotANode | Self::WrongName => CloseCode::WrongName,
            Self::Handshake | Self::Garbage | Self::Request => CloseCode::Garbage,
            Self::Oversized => CloseCode::Oversized,
            Self::Version => CloseCode::Version,
            Self::OlderIncarnation => CloseCode::OlderIncarnation,
            Self::Token => CloseCode::TokenRefused,
            Self::Late => CloseCode::Late,
            Self::Busy => CloseCode::Busy,
        }
    }

    /// What a broken frame is called; `None` when the stream merely ended.
    pub(super) fn of_frame(error: &FrameError) -> Option<Self> {
        match error {
            FrameError::Oversized { .. } => Some(Self::Oversized),
            FrameError::Version { .. } => Some(Self::Version),
            FrameError::Short { .. } | FrameError::Garbage(_) | FrameError::Truncated => Some(Self::Garbage),
            FrameError::Closed | FrameError::Encode(_) | FrameError::Io(_) => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Counters of refusals since the start.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; Refusal::ALL.len()],
    logged: Mutex<BTreeSet<(IpAddr, Refusal)>>,
}

impl Refusals {
    #[must_use]
    pub fn count(&self, kind: Refusal) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    /// Every kind with its count, for `/metrics`.
    pub fn counts(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().map(|kind| (kind, self.count(kind)))
    }

    pub(super) fn add(&self, kind: Refusal, peer: IpAddr, detail: &dyn fmt::Display) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        if self.is_first(kind, peer) {
            warn!(%peer, %kind, %detail, "agent refused; later ones of this peer and kind are only counted");
        } else {
            debug!(%peer, %kind, %detail, "agent refused");
        }
    }

    fn is_first(&self, kind: Refusal, peer: IpAddr) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.len() < LOGGED_MAX && logged.insert((peer, kind))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_refusal_is_counted_always_and_logged_once() {
        let refusals = Refusals::default();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert!(refusals.is_first(Refusal::Garbage, peer));
        assert!(!refusals.is_first(Refusal::Garbage, peer));
        assert!(refusals.is_first(Refusal::Token, peer));
        for _ in 0..3 {
            refusals.add(Refusal::Garbage, peer, &"x");
        }
        assert_eq!((refusals.count(Refusal::Garbage), refusals.count(Refusal::Token)), (3, 0));
    }

    #[test]
    fn a_flood_from_many_addresses_takes_bounded_memory() {
        let refusals = Refusals::default();
        for number in 0..10_000_u32 {
            refusals.add(Refusal::Late, IpAddr::V4(Ipv4Addr::from(number)), &"x");
        }
        assert_eq!(refusals.count(Refusal::Late), 10_000);
        assert_eq!(refusals.logged.lock().unwrap().len(), LOGGED_MAX);
    }

    #[test]
    fn every_kind_has_its_own_counter() {
        for (place, kind) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }
}
