//! Whose certificate it is, read from its DNS names and from nothing else.
//!
//! A node's certificate has one name, `NODE.node.cic.internal`. A controller's has two,
//! `ID.controller.cic.internal` and the shared `controller.cic.internal`: an agent knows addresses of
//! controllers, not which controller it will meet there.

use std::fmt;

use rustls_pki_types::{CertificateDer, DnsName, ServerName};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::id::{ControllerId, IdError, NodeId};

const NODE_SUFFIX: &str = ".node.cic.internal";
const CONTROLLER_SUFFIX: &str = ".controller.cic.internal";
const ANY_CONTROLLER: &str = "controller.cic.internal";

/// Why a certificate names nobody of this fleet.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("certificate cannot be read")]
    Unreadable,
    #[error("certificate names {names:?}, which is neither one node nor one controller")]
    Names { names: Vec<String> },
    #[error("certificate names no valid id")]
    Id(#[source] IdError),
}

/// One process of the fleet as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Controller(ControllerId),
    Node(NodeId),
}

impl Peer {
    /// Reads the names of a certificate whose chain has been verified.
    ///
    /// # Errors
    /// When the names are not exactly those of one node or of one controller.
    pub fn from_leaf(leaf: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let names = dns_names_of(leaf)?;
        let peer = names.iter().find_map(|name| {
            if let Some(id) = name.strip_suffix(NODE_SUFFIX) {
                Some(NodeId::new(id).map(Self::Node))
            } else {
                name.strip_suffix(CONTROLLER_SUFFIX).map(|id| ControllerId::new(id).map(Self::Controller))
            }
        });
        match peer {
            Some(Ok(peer)) if peer.dns_names() == names => Ok(peer),
            Some(Err(error)) => Err(PeerError::Id(error)),
            _ => Err(PeerError::Names { names }),
        }
    }

    /// The names its certificate carries.
    #[must_use]
    pub fn dns_names(&self) -> Vec<String> {
        match self {
            Self::Node(_) => vec![self.dns_name()],
            Self::Controller(_) => vec![self.dns_name(), ANY_CONTROLLER.to_owned()],
        }
    }

    /// The name to verify when dialling exactly this peer.
    #[must_use]
    pub fn server_name(&self) -> ServerName<'static> {
        server_name(self.dns_name())
    }

    fn dns_name(&self) -> String {
        match self {
            Self::Node(id) => format!("{id}{NODE_SUFFIX}"),
            Self::Controller(id) => format!("{id}{CONTROLLER_SUFFIX}"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Controller(id) => write!(f, "controller {id}"),
        }
    }
}

/// The name to verify when dialling a controller whose id is not known.
#[must_use]
pub fn any_controller() -> &'static str {
    ANY_CONTROLLER
}

/// Who is at the other end of a QUIC connection; `None` when it showed no certificate.
///
/// # Errors
/// When it showed one that names nobody of this fleet.
pub fn of_quic(connection: &quinn::Connection) -> Result<Option<Peer>, PeerError> {
    let Some(identity) = connection.peer_identity() else {
        return Ok(None);
    };
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| PeerError::Unreadable)?;
    chain.first().map(Peer::from_leaf).transpose()
}

/// Who is at the other end of a TLS session over TCP; `None` when it showed no certificate.
///
/// # Errors
/// When it showed one that names nobody of this fleet.
pub fn of_tls(session: &rustls::CommonState) -> Result<Option<Peer>, PeerError> {
    session.peer_certificates().and_then(|chain| chain.first()).map(Peer::from_leaf).transpose()
}

fn server_name(name: String) -> ServerName<'static> {
    // An id is a checked DNS label and the suffixes are constants.
    ServerName::DnsName(DnsName::try_from(name).expect("an id with a suffix is a DNS name"))
}

fn dns_names_of(leaf: &CertificateDer<'_>) -> Result<Vec<String>, PeerError> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Unreadable)?;
    let extension = certificate.subject_alternative_name().map_err(|_| PeerError::Unreadable)?;
    let names = extension.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        other => other.to_string(),
    };
    Ok(names.iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn leaf(names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn a_certificate_names_exactly_one_peer_or_nobody() {
        let node = Peer::Node(NodeId::new("n1").unwrap());
        let controller = Peer::Controller(ControllerId::new("c1").unwrap());
        for (names, expected) in [
            (vec!["n1.node.cic.internal"], Some(&node)),
            (vec!["c1.controller.cic.internal", "controller.cic.internal"], Some(&controller)),
            (vec!["c1.controller.cic.internal"], None),
            (vec!["controller.cic.internal"], None),
            (vec!["n1.node.cic.internal", "controller.cic.internal"], None),
            (vec!["n1.node.cic.internal", "n2.node.cic.internal"], None),
            (vec!["n1.node.cic.internal", "127.0.0.1"], None),
            (vec!["a.b.node.cic.internal"], None),
            (vec!["n1.node.cic.internal.example.org"], None),
            (vec![], None),
        ] {
            assert_eq!(Peer::from_leaf(&leaf(&names)).ok().as_ref(), expected, "{names:?}");
        }
    }

    #[test]
    fn a_node_called_controller_is_still_a_node() {
        let node = Peer::Node(NodeId::new("controller").unwrap());
        assert_eq!(node.dns_names(), ["controller.node.cic.internal"]);
    }
}
