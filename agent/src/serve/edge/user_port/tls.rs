//! The certificate that users see.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::files::read_bounded;

/// In the order in which they are preferred.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate and its key are of no use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{path} cannot be read")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the certificate file is no PEM")]
    CertificatePem(#[source] rustls_pki_types::pem::Error),
    #[error("the certificate file holds no certificate")]
    NoCertificate,
    #[error("the key file holds no private key")]
    KeyPem(#[source] rustls_pki_types::pem::Error),
    #[error("certificate and key do not make a server")]
    Rustls(#[from] rustls::Error),
}

/// A chain and its key, ready to be shown: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub(super) server: Arc<ServerConfig>,
}

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    /// When one cannot be read, or they do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let read = |path: &Path| {
            read_bounded(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source })
        };
        Self::parse(&read(certificate)?, &read(key)?)
    }

    pub(super) fn parse(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(CertificateError::CertificatePem)?;
        if chain.is_empty() {
            return Err(CertificateError::NoCertificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::KeyPem)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        server.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok(Self { server: Arc::new(server) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_with_its_own_key_makes_a_server() {
        let make = || rcgen::generate_simple_self_signed(["edge.test".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let pem =
            |made: &rcgen::CertifiedKey<rcgen::KeyPair>| (made.cert.pem(), made.signing_key.serialize_pem());
        let ((certificate, key), (_, other_key)) = (pem(&one), pem(&other));
        for (certificate, key, is_good) in [
            (certificate.as_str(), key.as_str(), true),
            (certificate.as_str(), other_key.as_str(), false),
            (certificate.as_str(), "", false),
            ("", key.as_str(), false),
            (key.as_str(), certificate.as_str(), false),
        ] {
            let parsed = Certificate::parse(certificate.as_bytes(), key.as_bytes());
            assert_eq!(parsed.is_ok(), is_good, "{:?}", parsed.err());
        }
    }
}
