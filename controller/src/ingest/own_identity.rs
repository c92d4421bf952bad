//! The controller's own certificate: made when missing, renewed while it runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cic_common::id::ControllerId;
use cic_common::supervise::TaskResult;
use cic_common::time::unix_ms;
use cic_common::tls::authority::AuthorityError;
use cic_common::tls::{CertificateAuthority, Identity, Peer, PendingKey};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// The wall clock may be set while we wait for a moment of it, so it is read again this often.
const CLOCK_TRUST: Duration = Duration::from_secs(60);

/// After a renewal that failed, which means a full disk.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// The identity kept at `path`, or a new one when there is none that holds and is this controller's.
///
/// # Errors
/// When the authority does not sign or the file cannot be read or written.
pub fn open_own_identity(
    path: &Path,
    authority: &CertificateAuthority,
    controller: &ControllerId,
    span: Duration,
) -> Result<Identity, AuthorityError> {
    let (now_ms, peer) = (unix_ms(), Peer::Controller(controller.clone()));
    let kept = Identity::load(path)?;
    let fit = kept.filter(|kept| kept.peer() == &peer && kept.validity().holds_at(now_ms));
    fit.map_or_else(|| authority.issue(path, &peer, span, now_ms), Ok)
}

/// Renews `identity` at two thirds of each life until `token` is cancelled.
///
/// # Errors
/// Never; the type is that of a supervised task.
pub async fn keep_own_identity(
    identity: Identity,
    authority: Arc<CertificateAuthority>,
    span: Duration,
    token: CancellationToken,
) -> TaskResult {
    loop {
        let left_ms = identity.validity().renew_at_ms().saturating_sub(unix_ms());
        let wait = match left_ms {
            0 => match renew(&identity, &authority, span) {
                Ok(()) => Duration::ZERO,
                Err(cause) => {
                    let source = std::error::Error::source(&cause).map(ToString::to_string);
                    error!(error = %cause, source, "own certificate is not renewed");
                    RETRY_INTERVAL
                }
            },
            _ => Duration::from_millis(left_ms).min(CLOCK_TRUST),
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn renew(
    identity: &Identity,
    authority: &CertificateAuthority,
    span: Duration,
) -> Result<(), AuthorityError> {
    let key = PendingKey::generate()?;
    let issued = authority.sign(&key.csr_der()?, identity.peer(), span, unix_ms())?;
    identity.renew(&key, &issued.chain_pem)?;
    info!(serial = issued.serial, "own certificate renewed");
    Ok(())
}
