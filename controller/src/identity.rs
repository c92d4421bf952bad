//! This controller's own certificate: made by the fleet's authority, renewed while it runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::links::CERTIFICATE_SPAN;
use cic_common::id::ControllerId;
use cic_common::supervise::TaskResult;
use cic_common::time::{Clock, unix_ms};
use cic_common::tls::authority::AuthorityError;
use cic_common::tls::identity::IdentityError;
use cic_common::tls::{CertificateAuthority, Identity, Peer, PendingKey};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between looks at whether it is time to renew: far less than the eight hours that are left then.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum OwnIdentityError {
    #[error("fleet authority cannot be used")]
    Authority(#[from] AuthorityError),
    #[error("controller's certificate cannot be used")]
    Identity(#[from] IdentityError),
}

/// Opens the authority and the identity of `id` kept in `directory`, making what is missing or due.
///
/// # Errors
/// When a file cannot be read, written or understood.
pub fn open(
    directory: &Path,
    id: &ControllerId,
) -> Result<(CertificateAuthority, Identity), OwnIdentityError> {
    let now_ms = unix_ms();
    let authority = CertificateAuthority::open(directory, now_ms)?;
    let (path, peer) = (directory.join("controller.pem"), Peer::Controller(id.clone()));
    if let Some(identity) = Identity::load(&path)?
        && *identity.peer() == peer
        && identity.validity().renew_at_ms() > now_ms
    {
        return Ok((authority, identity));
    }
    let identity = authority.issue(&path, &peer, CERTIFICATE_SPAN, now_ms)?;
    Ok((authority, identity))
}

/// Renews `identity` whenever it is due, until `token` is cancelled.
///
/// # Errors
/// Never: a renewal that fails is tried again; a third of the certificate's life is left for that.
pub async fn keep_renewed(
    authority: Arc<CertificateAuthority>,
    identity: Identity,
    clock: Clock,
    token: CancellationToken,
) -> TaskResult {
    loop {
        // Cancel safe: both only wait.
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = token.cancelled() => return Ok(()),
        }
        let now_ms = clock.unix_ms();
        if now_ms < identity.validity().renew_at_ms() {
            continue;
        }
        match renew(&authority, &identity, now_ms) {
            Ok(()) => info!("controller certificate renewed"),
            Err(error) => warn!(%error, "controller certificate not renewed"),
        }
    }
}

fn renew(authority: &CertificateAuthority, identity: &Identity, now_ms: u64) -> Result<(), OwnIdentityError> {
    let key = PendingKey::generate()?;
    let issued = authority.sign(&key.csr_der()?, identity.peer(), CERTIFICATE_SPAN, now_ms)?;
    Ok(identity.renew(&key, &issued.chain_pem)?)
}
