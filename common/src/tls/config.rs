//! The TLS configurations of every socket: TLS 1.3 only, both sides known.
//!
//! Resumption is off on both sides. A resumed session would keep the certificate of the first handshake and so
//! hide a renewal or an expiry, and handshakes here are rare.

use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, ServerConfig};

use super::{Identity, Trust, quic};
use crate::wire::version::{ALPN, ALPN_ENROL};

const HTTP_1: &[u8] = b"http/1.1";

/// Why a configuration cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("TLS cannot be configured")]
    Rustls(#[from] rustls::Error),
    #[error("peers cannot be verified")]
    Verifier(#[from] VerifierBuilderError),
    #[error("TLS has no cipher suite for QUIC")]
    Cipher(#[from] NoInitialCipherSuite),
}

/// A TCP server: no session without a certificate. HTTP/1.1.
///
/// # Errors
/// When `trust` cannot serve to verify clients.
pub fn tcp_server(identity: &Identity, trust: &Trust) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(trust.roots(), provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = vec![HTTP_1.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A TCP client that shows its certificate and speaks HTTP/1.1.
///
/// # Errors
/// When TLS 1.3 is not available.
pub fn tcp_client(identity: &Identity, trust: &Trust) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = client(Some(identity), trust)?;
    config.alpn_protocols = vec![HTTP_1.to_vec()];
    Ok(Arc::new(config))
}

/// The controller's QUIC server. A client without certificate gets through the handshake, because that is how
/// enrolment begins; whoever accepts the connection must ask [`super::peer::of_quic`].
///
/// # Errors
/// When `trust` cannot serve to verify clients.
pub fn quic_server(identity: &Identity, trust: &Trust) -> Result<quinn::ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(trust.roots(), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity.clone()));
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROL.to_vec()];
    config.send_tls13_tickets = 0;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    quic::bound_server(&mut server);
    Ok(server)
}

/// An agent's QUIC client: shows its certificate, speaks `cic/1`.
///
/// # Errors
/// When TLS 1.3 is not available.
pub fn quic_client(identity: &Identity, trust: &Trust) -> Result<quinn::ClientConfig, TlsError> {
    quic_with(client(Some(identity), trust)?, ALPN)
}

/// The QUIC client of an agent that has no certificate yet, speaks `cic-enrol/1`.
///
/// # Errors
/// When TLS 1.3 is not available.
pub fn quic_enrol_client(trust: &Trust) -> Result<quinn::ClientConfig, TlsError> {
    quic_with(client(None, trust)?, ALPN_ENROL)
}

/// A QUIC client that says `alpn` but shows no certificate: what an intruder would be. For tests.
///
/// # Errors
/// When TLS 1.3 is not available.
pub fn quic_client_without_certificate(trust: &Trust) -> Result<quinn::ClientConfig, TlsError> {
    quic_with(client(None, trust)?, ALPN)
}

fn quic_with(mut config: ClientConfig, alpn: &[u8]) -> Result<quinn::ClientConfig, TlsError> {
    config.alpn_protocols = vec![alpn.to_vec()];
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    client.transport_config(quic::client_transport());
    Ok(client)
}

fn client(identity: Option<&Identity>, trust: &Trust) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(trust.roots());
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity.clone())),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
