//! The private key and certificate of one process, renewable while it runs.
//!
//! Key and chain live in one file, so that a crash cannot leave a key beside another key's certificate. Every
//! handshake asks the [`Identity`] anew: a renewed certificate is used by the next handshake, and no socket or
//! endpoint is rebuilt.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, KeyPair};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::peer::{Peer, PeerError};
use super::write_secret;

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("identity file {} cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("identity file {} cannot be written", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("key or request cannot be made")]
    Key(#[source] rcgen::Error),
    #[error("identity is not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("key and certificate do not belong together")]
    Mismatch(#[source] rustls::Error),
    #[error("certificate cannot be read")]
    Certificate,
    #[error("certificate names nobody of this fleet")]
    Peer(#[source] PeerError),
    #[error("certificate is for {found}, not for {expected}")]
    OtherPeer { found: Peer, expected: Peer },
}

/// A fresh key waiting for its certificate.
pub struct PendingKey {
    key: KeyPair,
}

impl PendingKey {
    /// A new ECDSA P-256 key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self { key: KeyPair::generate().map_err(IdentityError::Key)? })
    }

    /// A signing request for this key. It names nobody: the authority knows for whom it signs.
    ///
    /// # Errors
    /// When signing fails.
    pub fn csr_der(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.key).map_err(IdentityError::Key)?;
        Ok(request.der().to_vec())
    }
}

impl fmt::Debug for PendingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PendingKey")
    }
}

/// From when to when a certificate holds, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before_ms: u64,
    pub not_after_ms: u64,
}

impl Validity {
    /// When to ask for the next one: two thirds through, so that a third is left for trying.
    #[must_use]
    pub fn renew_at_ms(self) -> u64 {
        self.not_before_ms + self.not_after_ms.saturating_sub(self.not_before_ms) / 3 * 2
    }

    #[must_use]
    pub fn holds_at(self, unix_ms: u64) -> bool {
        (self.not_before_ms..self.not_after_ms).contains(&unix_ms)
    }
}

/// The identity of this process. Clones share it; a renewal is seen by all.
#[derive(Clone)]
pub struct Identity {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    peer: Peer,
    held: ArcSwap<Held>,
}

struct Held {
    certified: Arc<CertifiedKey>,
    validity: Validity,
}

impl Identity {
    /// The identity kept at `path`, or `None` when there is no such file.
    ///
    /// # Errors
    /// When the file is there and of no use. Whether it still holds is the caller's to ask.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Read { path: path.to_owned(), source }),
        };
        let (peer, held) = parse(&text)?;
        Ok(Some(Self::new(path, peer, held)))
    }

    /// Keeps `key` and its certificate at `path`.
    ///
    /// # Errors
    /// When they do not belong together, name nobody, or cannot be written.
    pub fn adopt(path: &Path, key: &PendingKey, chain_pem: &str) -> Result<Self, IdentityError> {
        let text = join(key, chain_pem);
        let (peer, held) = parse(&text)?;
        store(path, &text)?;
        Ok(Self::new(path, peer, held))
    }

    /// Replaces key and certificate, on disk and for every handshake from now on.
    ///
    /// # Errors
    /// As [`Identity::adopt`], and when the certificate names another peer. The old ones stay then.
    pub fn renew(&self, key: &PendingKey, chain_pem: &str) -> Result<(), IdentityError> {
        let text = join(key, chain_pem);
        let (found, held) = parse(&text)?;
        if found != self.shared.peer {
            return Err(IdentityError::OtherPeer { found, expected: self.shared.peer.clone() });
        }
        store(&self.shared.path, &text)?;
        self.shared.held.store(Arc::new(held));
        Ok(())
    }

    /// Who this is.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    #[must_use]
    pub fn validity(&self) -> Validity {
        self.shared.held.load().validity
    }

    fn new(path: &Path, peer: Peer, held: Held) -> Self {
        let held = ArcSwap::from_pointee(held);
        Self { shared: Arc::new(Shared { path: path.to_owned(), peer, held }) }
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.shared.held.load().certified)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.shared.peer)
            .field("validity", &self.validity())
            .finish()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn join(key: &PendingKey, chain_pem: &str) -> String {
    format!("{}{chain_pem}", key.key.serialize_pem())
}

fn store(path: &Path, text: &str) -> Result<(), IdentityError> {
    write_secret(path, text.as_bytes())
        .map_err(|source| IdentityError::Write { path: path.to_owned(), source })
}

fn parse(text: &str) -> Result<(Peer, Held), IdentityError> {
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(IdentityError::Pem)?;
    let chain = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(IdentityError::Pem)?;
    let leaf = chain.first().ok_or(IdentityError::Certificate)?;
    let peer = Peer::from_leaf(leaf).map_err(IdentityError::Peer)?;
    let validity = validity_of(leaf)?;
    let certified = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map_err(IdentityError::Mismatch)?;
    Ok((peer, Held { certified: Arc::new(certified), validity }))
}

fn validity_of(leaf: &CertificateDer<'_>) -> Result<Validity, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Certificate)?;
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let validity = certificate.validity();
    Ok(Validity {
        not_before_ms: ms(validity.not_before.timestamp()),
        // The last second counts (RFC 5280, 4.1.2.5).
        not_after_ms: ms(validity.not_after.timestamp()).saturating_add(1000),
    })
}
