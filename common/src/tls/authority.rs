//! The fleet's own certificate authority.
//!
//! It takes nothing from a signing request but the public key: for whom it signs, for how long and for what use
//! is the caller's word, so a request cannot ask for a name.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::CertificateSigningRequestDer;

use super::identity::{Identity, IdentityError, PendingKey};
use super::peer::Peer;
use super::{Trust, TrustError, write_secret};

const CERTIFICATE_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";

/// Life of the authority itself. It has no renewal yet, so it outlives any fleet.
const AUTHORITY_SPAN: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A certificate holds from this share of its life before it was made, at most [`BACKDATE_MAX`]: the machine
/// that checks it may have a clock that is behind.
const BACKDATE_SHARE: u32 = 10;

/// Common practice of public authorities is one hour; machines here run NTP.
const BACKDATE_MAX: Duration = Duration::from_secs(300);

/// Why the authority cannot be opened or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("authority file {} cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("authority file {} cannot be written", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("authority's key or certificate is of no use")]
    Material(#[source] rcgen::Error),
    #[error("authority's certificate is of no use")]
    Trust(#[from] TrustError),
    #[error("signing request is of no use")]
    Request(#[source] rcgen::Error),
    #[error("signing request is not for an ECDSA P-256 key")]
    Algorithm,
    #[error("certificate cannot be signed")]
    Sign(#[source] rcgen::Error),
    #[error("the system gives no random bytes")]
    Random,
    #[error("own identity cannot be kept")]
    Identity(#[from] IdentityError),
}

/// Random bits of a serial number: unique without a counter to keep (RFC 5280 allows 20 bytes).
const SERIAL_BYTES: usize = 16;

/// A certificate that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// PEM, leaf first.
    pub chain_pem: String,
    /// Hexadecimal, for the list of certificates issued.
    pub serial: String,
    pub not_after_ms: u64,
}

/// Signs the certificates of one fleet.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl CertificateAuthority {
    /// Loads the authority kept in `directory`, or makes one there. `now_ms` is Unix time.
    ///
    /// # Errors
    /// When the files cannot be read, written or understood.
    pub fn open(directory: &Path, now_ms: u64) -> Result<Self, AuthorityError> {
        // The certificate is written last, so its presence says that the key is there too.
        if directory.join(CERTIFICATE_FILE).exists() {
            Self::load(directory)
        } else {
            Self::create(directory, now_ms)
        }
    }

    /// Opens the authority that is kept in `directory`, and makes none.
    ///
    /// # Errors
    /// When a file is missing or of no use.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        let read = |name| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(|source| AuthorityError::Read { path, source })
        };
        let key = KeyPair::from_pem(&read(KEY_FILE)?).map_err(AuthorityError::Material)?;
        Self::new(key, read(CERTIFICATE_FILE)?)
    }

    fn create(directory: &Path, now_ms: u64) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Material)?;
        let mut params = named("cic fleet authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_life(&mut params, AUTHORITY_SPAN, now_ms);
        let certificate_pem = params.self_signed(&key).map_err(AuthorityError::Material)?.pem();
        let write = |name, text: &str| {
            let path = directory.join(name);
            write_secret(&path, text.as_bytes()).map_err(|source| AuthorityError::Write { path, source })
        };
        write(KEY_FILE, &key.serialize_pem())?;
        write(CERTIFICATE_FILE, &certificate_pem)?;
        Self::new(key, certificate_pem)
    }

    fn new(key: KeyPair, certificate_pem: String) -> Result<Self, AuthorityError> {
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(AuthorityError::Material)?;
        Ok(Self { issuer, certificate_pem })
    }

    /// The authority's own certificate, which every node is given as its CA file.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// # Errors
    /// When the certificate is no authority's.
    pub fn trust(&self) -> Result<Trust, AuthorityError> {
        Ok(Trust::from_pem(&self.certificate_pem)?)
    }

    /// Signs the key of a request for `peer`, from `now_ms` (Unix time) on for `span`.
    ///
    /// # Errors
    /// When the request is not signed by its own key or the key is of another kind than this fleet's.
    pub fn sign(
        &self,
        csr_der: &[u8],
        peer: &Peer,
        span: Duration,
        now_ms: u64,
    ) -> Result<Issued, AuthorityError> {
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der.to_vec()))
                .map_err(AuthorityError::Request)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(AuthorityError::Algorithm);
        }
        let mut params = CertificateParams::new(peer.dns_names()).map_err(AuthorityError::Sign)?;
        params.distinguished_name = named(&peer.to_string()).distinguished_name;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_life(&mut params, span, now_ms);
        let mut serial = [0; SERIAL_BYTES];
        SystemRandom::new().fill(&mut serial).map_err(|_| AuthorityError::Random)?;
        // A positive number without a leading zero, so that every reader shows the same digits.
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(AuthorityError::Sign)?;
        Ok(Issued {
            chain_pem: certificate.pem(),
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after_ms: now_ms.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    /// Makes a key and certificate for `peer` and keeps them at `path`: the controller's own, or a test's.
    ///
    /// # Errors
    /// When signing or writing fails.
    pub fn issue(
        &self,
        path: &Path,
        peer: &Peer,
        span: Duration,
        now_ms: u64,
    ) -> Result<Identity, AuthorityError> {
        let key = PendingKey::generate()?;
        let issued = self.sign(&key.csr_der()?, peer, span, now_ms)?;
        Ok(Identity::adopt(path, &key, &issued.chain_pem)?)
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateAuthority")
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn set_life(params: &mut CertificateParams, span: Duration, now_ms: u64) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(now_ms);
    params.not_before = now - BACKDATE_MAX.min(span / BACKDATE_SHARE);
    params.not_after = now + span;
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::id::{ControllerId, NodeId};

    const NOW_MS: u64 = 1_795_478_400_500;
    const DAY: Duration = Duration::from_secs(86_400);

    fn node() -> Peer {
        Peer::Node(NodeId::new("n1").unwrap())
    }

    #[test]
    fn an_authority_is_the_same_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let first = CertificateAuthority::open(directory.path(), NOW_MS).unwrap();
        let second = CertificateAuthority::open(directory.path(), NOW_MS).unwrap();
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        let key = std::fs::metadata(directory.path().join(KEY_FILE)).unwrap();
        assert_eq!(key.permissions().mode() & 0o077, 0);
    }

    #[test]
    fn a_request_gives_its_key_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open(directory.path(), NOW_MS).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::new(vec!["c1.controller.cic.internal".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = greedy.serialize_request(&key).unwrap();
        let chain = authority.sign(request.der(), &node(), DAY, NOW_MS).unwrap();
        let path = directory.path().join("identity.pem");
        std::fs::write(&path, format!("{}{}", key.serialize_pem(), chain.chain_pem)).unwrap();
        let identity = Identity::load(&path).unwrap().unwrap();
        assert_eq!(identity.peer(), &node());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open(directory.path(), NOW_MS).unwrap();
        let mut broken = PendingKey::generate().unwrap().csr_der().unwrap();
        let last = broken.len() - 1;
        broken[last] ^= 1;
        for bytes in [&b""[..], b"garbage", &broken] {
            assert!(authority.sign(bytes, &node(), DAY, NOW_MS).is_err());
        }
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let request = CertificateParams::default().serialize_request(&other).unwrap();
        let refused = authority.sign(request.der(), &node(), DAY, NOW_MS);
        assert!(matches!(refused, Err(AuthorityError::Algorithm)));
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_and_before_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open(directory.path(), NOW_MS).unwrap();
        for span in [Duration::from_secs(3), DAY] {
            let path = directory.path().join("n1.pem");
            let validity = authority.issue(&path, &node(), span, NOW_MS).unwrap().validity();
            let end_ms = NOW_MS + u64::try_from(span.as_millis()).unwrap();
            assert!(validity.holds_at(NOW_MS) && validity.holds_at(end_ms - 500));
            assert!(!validity.holds_at(end_ms + 1000));
            assert!(validity.renew_at_ms() > NOW_MS && validity.renew_at_ms() < end_ms, "{validity:?}");
        }
    }

    #[test]
    fn a_renewal_keeps_the_name_and_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::open(directory.path(), NOW_MS).unwrap();
        let path = directory.path().join("n1.pem");
        let identity = authority.issue(&path, &node(), DAY, NOW_MS).unwrap();
        let key = PendingKey::generate().unwrap();
        let sign = |peer| {
            authority.sign(&key.csr_der().unwrap(), &peer, DAY, NOW_MS + 60_000_000).unwrap().chain_pem
        };

        let stolen = sign(Peer::Controller(ControllerId::new("c1").unwrap()));
        assert!(matches!(identity.renew(&key, &stolen), Err(IdentityError::OtherPeer { .. })));
        let mismatched = PendingKey::generate().unwrap();
        assert!(matches!(identity.renew(&mismatched, &sign(node())), Err(IdentityError::Mismatch(_))));

        let before = identity.validity();
        identity.renew(&key, &sign(node())).unwrap();
        assert!(identity.validity().not_after_ms > before.not_after_ms);
        assert_eq!(Identity::load(&path).unwrap().unwrap().validity(), identity.validity());
    }
}
