//! The port for users: plain HTTP/1.1.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cic_common::supervise::{Kind, Supervisor, TaskResult};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Edge;

/// Connections at once; more are closed at once, so that the node keeps its file descriptors for its engine.
const CONNECTIONS_MAX: usize = 4096;

/// From the connection, or the answer before, to the end of the next request's head. Longer than the idle time of
/// the usual clients' pools (OpenAI's Python client: 5 s), so that it is they who close.
const IDLE_MAX: Duration = Duration::from_secs(75);

/// Out of file descriptors or memory: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// When the program stops: time for answers under way to end.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// The port users call.
#[derive(Debug, Clone)]
pub struct UserPort {
    pub edge: Edge,
}

impl UserPort {
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
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            // Cancel safe: a connection is only taken with its arm.
            let accepted = tokio::select! {
                () = token.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "user connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                debug!("user connection refused: too many");
                continue;
            };
            let edge = self.edge.clone();
            supervisor.spawn("user connection", Kind::Passing, |token| async move {
                let result = connection(edge, stream, token).await;
                drop(place);
                result
            });
        }
    }
}

async fn connection(edge: Edge, stream: TcpStream, token: CancellationToken) -> TaskResult {
    stream.set_nodelay(true)?;
    let service = service_fn(move |request| {
        let edge = edge.clone();
        async move { Ok::<_, Infallible>(edge.from_user(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // Cancel safe: the connection is polled on below.
    tokio::select! {
        result = &mut connection => return Ok(result?),
        () = token.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(tokio::time::timeout(FINISH_WITHIN, connection).await??)
}
