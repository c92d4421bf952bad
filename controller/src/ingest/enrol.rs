//! Enrolment: a join token and a signing request come in, a certificate goes out.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cic_common::id::NodeId;
use cic_common::time::unix_ms;
use cic_common::tls::{CertificateAuthority, Issued, JoinToken, Peer, TokenHash};
use cic_common::wire::close::CloseCode;
use cic_common::wire::frame::{FrameError, FrameReader, FrameWriter};
use cic_common::wire::message::{EnrolAnswer, EnrolRequest};
use quinn::Connection;
use tokio::time::timeout;
use tracing::{info, warn};

use super::refusal::{Refusal, Refusals};

/// From the handshake to the request, and from the answer to the agent's close.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(5);

/// Answers kept for an agent whose connection broke before it had its certificate. Its token is used by then,
/// and without this a lost packet would cost the node.
const ANSWERS_KEPT_MAX: usize = 256;

/// Why a token does not let a node in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// For good: unknown, used, expired, another node's.
    #[error("{0}")]
    Token(String),
    /// Nobody can say now, such as when the store is away; the agent asks again.
    #[error("{0}")]
    Unavailable(String),
}

/// What a [`JoinDesk`] answers.
pub type JoinFuture = Pin<Box<dyn Future<Output = Result<(), JoinRefusal>> + Send>>;

/// Uses up the token with this hash for this node, once.
pub type JoinDesk = Arc<dyn Fn(TokenHash, NodeId) -> JoinFuture + Send + Sync>;

/// Is told of every certificate signed for a node, for the audit list. Must not wait.
pub type IssueLog = Arc<dyn Fn(&NodeId, &Issued) + Send + Sync>;

/// Signs for nodes: the first certificate against a token, later ones for who shows the last.
pub(super) struct Registry {
    authority: Arc<CertificateAuthority>,
    certificate_span: Duration,
    desk: JoinDesk,
    issue_log: IssueLog,
    kept: Mutex<VecDeque<(EnrolRequest, String)>>,
}

impl Registry {
    pub(super) fn new(
        authority: Arc<CertificateAuthority>,
        certificate_span: Duration,
        desk: JoinDesk,
        issue_log: IssueLog,
    ) -> Self {
        Self { authority, certificate_span, desk, issue_log, kept: Mutex::default() }
    }

    /// Signs for a node that has shown who it is. Returns the chain as PEM.
    pub(super) fn sign(&self, node: &NodeId, csr_der: &[u8]) -> Result<String, Refused> {
        let issued = self.issue(node, csr_der)?;
        (self.issue_log)(node, &issued);
        Ok(issued.chain_pem)
    }

    fn issue(&self, node: &NodeId, csr_der: &[u8]) -> Result<Issued, Refused> {
        let peer = Peer::Node(node.clone());
        self.authority
            .sign(csr_der, &peer, self.certificate_span, unix_ms())
            .map_err(|error| Refused::new(Refusal::Request, &error))
    }

    async fn enrol(&self, request: EnrolRequest) -> Result<String, EnrolFault> {
        if let Some(chain_pem) = self.kept(&request) {
            return Ok(chain_pem);
        }
        let token = JoinToken::parse(&request.token)
            .map_err(|error| EnrolFault::Refused(Refused::new(Refusal::Token, &error)))?;
        // Signed before the token is used, so that a bad request does not cost the token.
        let issued = self.issue(&request.node, &request.csr_der).map_err(EnrolFault::Refused)?;
        (self.desk)(token.hash(), request.node.clone()).await.map_err(|refusal| match refusal {
            JoinRefusal::Token(_) => EnrolFault::Refused(Refused::new(Refusal::Token, &refusal)),
            JoinRefusal::Unavailable(reason) => EnrolFault::Unavailable(reason),
        })?;
        (self.issue_log)(&request.node, &issued);
        info!(node = %request.node, serial = issued.serial, "node enrolled");
        self.keep(request, issued.chain_pem.clone());
        Ok(issued.chain_pem)
    }

    /// The answer to this very request: same token, node and key.
    fn kept(&self, request: &EnrolRequest) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(earlier, _)| earlier == request).map(|(_, chain_pem)| chain_pem.clone())
    }

    fn keep(&self, request: EnrolRequest, chain_pem: String) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= ANSWERS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((request, chain_pem));
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("certificate_span", &self.certificate_span).finish_non_exhaustive()
    }
}

/// A refusal with the words for it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) kind: Refusal,
    pub(super) reason: String,
}

impl Refused {
    pub(super) fn new(kind: Refusal, reason: &dyn fmt::Display) -> Self {
        Self { kind, reason: reason.to_string() }
    }
}

enum EnrolFault {
    Refused(Refused),
    Unavailable(String),
}

/// Serves one enrolment and closes the connection.
pub(super) async fn serve(registry: &Registry, refusals: &Refusals, connection: &Connection) {
    let peer = connection.remote_address().ip();
    let code = match timeout(EXCHANGE_DEADLINE, exchange(registry, refusals, connection)).await {
        Ok(Ok(())) => {
            // The agent closes when it has read the answer; closing here could overtake it.
            let _ = timeout(EXCHANGE_DEADLINE, connection.closed()).await;
            CloseCode::Done
        }
        Ok(Err(code)) => code,
        Err(_) => {
            refusals.add(Refusal::Late, peer, &"no enrolment request in time");
            CloseCode::Late
        }
    };
    code.close(connection);
}

async fn exchange(
    registry: &Registry,
    refusals: &Refusals,
    connection: &Connection,
) -> Result<(), CloseCode> {
    let peer = connection.remote_address().ip();
    let broken = |error: FrameError| match Refusal::of_frame(&error) {
        Some(kind) => {
            refusals.add(kind, peer, &error);
            kind.close_code()
        }
        None => CloseCode::Done,
    };
    let (send, receive) = connection.accept_bi().await.map_err(|_| CloseCode::Done)?;
    let request: EnrolRequest = FrameReader::new(receive).next().await.map_err(broken)?;
    let node = request.node.clone();
    let answer = match registry.enrol(request).await {
        Ok(chain_pem) => EnrolAnswer::Enrolled { chain_pem },
        Err(EnrolFault::Refused(Refused { kind, reason })) => {
            refusals.add(kind, peer, &format_args!("{node}: {reason}"));
            EnrolAnswer::Refused { reason }
        }
        Err(EnrolFault::Unavailable(reason)) => {
            warn!(%node, reason, "enrolment must wait");
            return Err(CloseCode::Busy);
        }
    };
    FrameWriter::new(send).write(&answer).await.map_err(broken)
}
