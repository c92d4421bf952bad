//! The port for users: takes connections while there are places.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::{Kind, Supervisor, TaskResult};
use cic_common::time::Clock;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::connection::serve;
use super::files::{Files, FilesError};
use super::gate::Gate;
use super::limits::Limits;
use super::places::Places;
use super::tls::Certificate;
use super::upload::Room;
use crate::serve::edge::Edge;

/// Out of file descriptors or memory: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How users reach an edge.
#[derive(Debug, Clone, Default)]
pub struct UserPortSpec {
    pub limits: Limits,
    /// Certificate and private key, both PEM; plain HTTP without.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// No key is needed without.
    pub keys: Option<PathBuf>,
    pub has_access_log: bool,
}

/// The port users call.
#[derive(Debug, Clone)]
pub struct UserPort {
    gate: Arc<Gate>,
    certificate: Option<watch::Receiver<Certificate>>,
}

impl UserPort {
    /// Reads the port's files. Whoever opens it lets [`Files::watch`] run as long as the port.
    ///
    /// # Errors
    /// When a file is of no use.
    pub fn open(edge: Edge, spec: &UserPortSpec, clock: Clock) -> Result<(Self, Files), FilesError> {
        let UserPortSpec { limits, certificate, keys, has_access_log } = spec;
        let certificate =
            certificate.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        let files = Files::open(keys.as_deref(), certificate)?;
        let (limits, keys, is_logged) = (limits.clone(), files.keys(), *has_access_log);
        let gate = Arc::new(Gate { edge, clock, limits, keys, is_logged, room: Room::default() });
        Ok((Self { gate, certificate: files.certificate() }, files))
    }

    /// Serves `listener` until `token` is cancelled.
    ///
    /// # Errors
    /// Never; the type is that of a supervised task.
    pub async fn run(
        self,
        listener: TcpListener,
        supervisor: Supervisor,
        token: CancellationToken,
    ) -> TaskResult {
        let limits = &self.gate.limits;
        let places = Places::new(limits.connections_max, limits.connections_per_client_max);
        loop {
            // Cancel safe: a connection is only taken with its arm.
            let accepted = tokio::select! {
                () = token.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "user connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let place = match places.take(address.ip()) {
                Ok(place) => place,
                Err(full) => {
                    debug!(client = %address.ip(), ?full, "user connection refused");
                    continue;
                }
            };
            // The one that is current now: a connection keeps the certificate that it began with.
            let certificate = self.certificate.as_ref().map(|current| current.borrow().clone());
            let (gate, inner) = (Arc::clone(&self.gate), supervisor.clone());
            supervisor.spawn("user connection", Kind::Passing, |token| async move {
                let result = serve(gate, certificate, stream, address, inner, token).await;
                drop(place);
                result
            });
        }
    }
}
