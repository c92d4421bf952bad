//! The authority a process believes, as read from its `ca.pem`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Why a CA file gives nothing to believe in.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("CA file {} cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("CA file is not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("CA file holds a certificate that is no authority")]
    Certificate(#[source] rustls::Error),
    #[error("CA file holds no certificate")]
    Empty,
}

/// The certificates that peers must descend from.
#[derive(Debug, Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
}

impl Trust {
    /// # Errors
    /// When the file cannot be read or holds no authority's certificate.
    pub fn from_file(path: &Path) -> Result<Self, TrustError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TrustError::Read { path: path.to_owned(), source })?;
        Self::from_pem(&text)
    }

    /// # Errors
    /// When `text` holds no authority's certificate.
    pub fn from_pem(text: &str) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            roots.add(certificate.map_err(TrustError::Pem)?).map_err(TrustError::Certificate)?;
        }
        if roots.is_empty() {
            return Err(TrustError::Empty);
        }
        Ok(Self { roots: Arc::new(roots) })
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }
}
