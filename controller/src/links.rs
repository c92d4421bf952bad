//! The two ways to the nodes: their control streams and the poller.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cic_common::id::ControllerId;
use cic_common::supervise::{Kind, Supervisor};
use cic_common::tls::authority::AuthorityError;
use cic_common::tls::config::TlsError;
use cic_common::tls::{CertificateAuthority, Identity};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::core::{Action, Event};
use crate::driver::Network;
use crate::ha::Leadership;
use crate::ingest::{Ingest, IngestError, IngestSpec, IssueLog, JoinDesk, JoinRefusal};
use crate::poll::Poller;
use crate::store::{Database, TokenError, Write};

/// Life of a node's and of a controller's certificate. Renewal comes at two thirds of it, so a fleet serves ten days
/// without any controller; a spot VM, and a key stolen from one, rarely lives longer than that.
pub const CERTIFICATE_SPAN: Duration = Duration::from_secs(30 * 24 * 3600);

/// Both ways. Clones share them.
#[derive(Debug, Clone)]
pub struct Links {
    pub ingest: Ingest,
    pub poller: Poller,
}

impl Network for Links {
    fn perform(&mut self, action: Action) {
        match action {
            Action::Send { node, message } => self.ingest.send(&node, message),
            Action::PublishRoutes(table) => self.ingest.publish_routes(table),
            Action::Poll { node, address, urgent, within } => self.poller.poll(node, address, urgent, within),
            Action::ForgetNode(node) => {
                self.ingest.forget(&node);
                self.poller.forget(&node);
            }
            Action::Record(_)
            | Action::Close(_)
            | Action::SaveNode(_)
            | Action::SaveDeployment(_)
            | Action::SaveSync(_)
            | Action::Launch { .. }
            | Action::Terminate { .. }
            | Action::ListInstances { .. }
            | Action::Explain { .. }
            | Action::CommandByPoll { .. }
            | Action::RestartBySsh { .. }
            | Action::Note(_) => {}
        }
    }

    fn beats_taken(&mut self) {
        self.ingest.beats_taken();
    }
}

/// What the links are made of.
#[derive(Debug)]
pub struct LinksSpec<'a> {
    pub socket: UdpSocket,
    pub controller: ControllerId,
    pub heartbeat_ms: u32,
    pub tls_dir: &'a Path,
    pub authority: Arc<CertificateAuthority>,
    pub identity: &'a Identity,
}

/// Why there is no way to the nodes.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    #[error("agents' port cannot be opened")]
    Ingest(#[from] IngestError),
    #[error("poller cannot be started")]
    Poller(#[from] TlsError),
    #[error("fleet authority cannot be trusted")]
    Trust(#[from] AuthorityError),
}

impl LinksSpec<'_> {
    /// Serves the agents' port on the runtime `agents` and starts the poller. What nodes say goes to `core`.
    ///
    /// # Errors
    /// When TLS cannot be configured or the socket is of no use.
    pub fn open(
        self,
        tasks: &Supervisor,
        agents: Handle,
        database: &Database,
        leadership: &Leadership,
        core: &mpsc::Sender<Event>,
    ) -> Result<Links, LinksError> {
        let trust = self.authority.trust()?;
        let poller = Poller::start(tasks, self.identity, &trust, core.clone())?;
        let spec = IngestSpec {
            controller: self.controller,
            heartbeat_ms: self.heartbeat_ms,
            identity: self.identity.clone(),
            trust,
            authority: self.authority,
            certificate_span: CERTIFICATE_SPAN,
            reset_key_path: self.tls_dir.join("reset.key"),
            desk: desk(database.clone(), tasks.clone()),
            issue_log: issue_log(leadership.clone(), database.clone(), tasks.clone()),
        };
        // The socket and what QUIC spawns go by the runtime that they are made in.
        let _inside = agents.enter();
        let ingest = Ingest::start(&tasks.on(agents.clone()), self.socket, spec, core.clone())?;
        Ok(Links { ingest, poller })
    }
}

/// Asks on the runtime of `tasks`: a connection that the database opens stays with the runtime that it was opened on, and
/// the agents' has no time for those of others.
fn desk(database: Database, tasks: Supervisor) -> JoinDesk {
    Arc::new(move |hash, node| {
        let (database, (told, answer)) = (database.clone(), oneshot::channel());
        tasks.spawn("join token", Kind::Passing, move |_| async move {
            // Fails only when the agent has gone meanwhile.
            let _ = told.send(database.consume_join_token(&hash, &node).await);
            Ok(())
        });
        Box::pin(async move {
            let Ok(taken) = answer.await else {
                return Err(JoinRefusal::Unavailable("this controller stops".to_owned()));
            };
            taken.map_err(|error| match error {
                TokenError::Store(error) => JoinRefusal::Unavailable(error.to_string()),
                TokenError::Unknown | TokenError::OtherNode | TokenError::Used | TokenError::Expired => {
                    JoinRefusal::Token(error.to_string())
                }
            })
        })
    })
}

/// A standby signs too, and has no queue: its entry is written by itself, fenced by nothing, since it is a fact.
fn issue_log(leadership: Leadership, database: Database, tasks: Supervisor) -> IssueLog {
    Arc::new(move |node, issued| {
        let (serial, node, expires_at_ms) = (issued.serial.clone(), node.clone(), issued.not_after_ms);
        if let Some(queue) = leadership.queue() {
            // A full queue loses an entry of the audit list, which is counted, not the node's certificate.
            queue.push(Write::Certificate { serial, node, expires_at_ms });
            return;
        }
        let database = database.clone();
        tasks.spawn("certificate note", Kind::Passing, move |_| async move {
            database.note_certificate(&serial, &node, expires_at_ms).await.map_err(Into::into)
        });
    })
}
