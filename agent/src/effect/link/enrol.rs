//! The first certificate of a node: a join token and a signing request for a chain.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cic_common::backoff::Backoff;
use cic_common::id::NodeId;
use cic_common::time::unix_ms;
use cic_common::tls::config::{TlsError, quic_enrol_client};
use cic_common::tls::identity::IdentityError;
use cic_common::tls::{Identity, JoinToken, Peer, PendingKey, Trust};
use cic_common::wire::close::CloseCode;
use cic_common::wire::frame::{FrameError, FrameReader, FrameWriter};
use cic_common::wire::message::{EnrolAnswer, EnrolRequest};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::dial::{DialError, dial};

/// From the request to the answer: the controller asks its store and signs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Waits between rounds over all controllers.
const RETRY_INITIAL: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What enrolling takes.
#[derive(Debug)]
pub struct EnrolSpec {
    /// `host:port` of every controller.
    pub controllers: Vec<String>,
    pub node: NodeId,
    pub join_token: JoinToken,
    pub trust: Trust,
    /// Where key and certificate are kept.
    pub identity_path: PathBuf,
}

/// Why a node has no certificate. None of these heals by trying again.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    #[error("controller {controller} refuses to enrol {node}: {reason}")]
    Refused { controller: String, node: NodeId, reason: String },
    #[error("identity cannot be made or kept")]
    Identity(#[from] IdentityError),
    #[error("TLS cannot be configured")]
    Tls(#[from] TlsError),
    #[error("stopped before any controller answered")]
    Stopped,
}

/// Why one attempt brought nothing; another may.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("not reached")]
    Dial(#[from] DialError),
    #[error("connection lost")]
    Lost(#[from] quinn::ConnectionError),
    #[error("stream broken")]
    Frame(#[from] FrameError),
    #[error("no answer within {ANSWER_DEADLINE:?}")]
    Late,
}

/// The identity kept at `path` if it is this node's and still holds; `None` says to enrol.
///
/// # Errors
/// When the file is there and of no use, or is another node's: somebody mixed up state directories.
pub fn load_identity(path: &Path, node: &NodeId) -> Result<Option<Identity>, IdentityError> {
    let Some(identity) = Identity::load(path)? else {
        return Ok(None);
    };
    let expected = Peer::Node(node.clone());
    if identity.peer() != &expected {
        return Err(IdentityError::OtherPeer { found: identity.peer().clone(), expected });
    }
    if !identity.validity().holds_at(unix_ms()) {
        warn!(validity = ?identity.validity(), "certificate does not hold now");
        return Ok(None);
    }
    Ok(Some(identity))
}

/// Enrols with whichever controller answers first in turn, and keeps the identity.
///
/// # Errors
/// When a controller refuses the token, the identity cannot be kept, or `stop` is cancelled. Controllers that do
/// not answer are asked again without end.
pub async fn enrol(spec: &EnrolSpec, stop: &CancellationToken) -> Result<Identity, EnrolError> {
    let config = quic_enrol_client(&spec.trust)?;
    // One key for all attempts: a controller that signed and could not answer recognises the request.
    let key = PendingKey::generate()?;
    let request =
        EnrolRequest { token: spec.join_token.to_string(), node: spec.node.clone(), csr_der: key.csr_der()? };
    let mut backoff = Backoff::new(RETRY_INITIAL, RETRY_MAX);
    loop {
        for controller in &spec.controllers {
            let answer = tokio::select! {
                // Cancel-safe: whatever is under way is dropped, and the controller remembers its answer.
                () = stop.cancelled() => return Err(EnrolError::Stopped),
                answer = attempt(controller, &config, &request) => answer,
            };
            match answer {
                Ok(EnrolAnswer::Enrolled { chain_pem }) => {
                    let identity = Identity::adopt(&spec.identity_path, &key, &chain_pem)?;
                    info!(node = %spec.node, controller, "enrolled");
                    return Ok(identity);
                }
                Ok(EnrolAnswer::Refused { reason }) => {
                    let (controller, node) = (controller.clone(), spec.node.clone());
                    return Err(EnrolError::Refused { controller, node, reason });
                }
                Err(error) => {
                    let cause = error.source().map(ToString::to_string);
                    warn!(controller, %error, cause, "not enrolled yet");
                }
            }
        }
        // Cancel-safe: only waits.
        tokio::select! {
            () = stop.cancelled() => return Err(EnrolError::Stopped),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

async fn attempt(
    controller: &str,
    config: &quinn::ClientConfig,
    request: &EnrolRequest,
) -> Result<EnrolAnswer, AttemptError> {
    let dialled = dial(controller, config).await?;
    let exchange = async {
        let (send, receive) = dialled.connection.open_bi().await?;
        FrameWriter::new(send).write(request).await?;
        Ok(FrameReader::new(receive).next().await?)
    };
    let answer = timeout(ANSWER_DEADLINE, exchange).await.map_err(|_| AttemptError::Late)?;
    CloseCode::Done.close(&dialled.connection);
    answer
}
