//! The port: how many connections at once, and how long each may take.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use cic_common::supervise::{Kind, Supervisor, TaskResult};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::error::ApiError;

/// Operators, dashboards and scrapers; a browser opens six.
const CONNECTIONS_MAX: usize = 256;

/// Between the requests of one connection, and for the head of each.
const HEAD_WITHIN: Duration = Duration::from_secs(60);

/// For body and answer together: above what a change waits for the store.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// When the program stops: for answers under way.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

/// Out of file descriptors or memory: accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` until `token` is cancelled.
pub(super) async fn run(
    listener: TcpListener,
    routes: Router,
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
                warn!(%error, "API connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            debug!("API connection refused: too many");
            continue;
        };
        let routes = routes.clone();
        supervisor.spawn("API connection", Kind::Passing, |token| async move {
            let result = connection(routes, stream, token).await;
            drop(place);
            result
        });
    }
}

async fn connection(routes: Router, stream: TcpStream, token: CancellationToken) -> TaskResult {
    stream.set_nodelay(true)?;
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(connection);
    // Cancel safe: the connection is polled on below.
    tokio::select! {
        result = &mut connection => return Ok(result?),
        () = token.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(timeout(FINISH_WITHIN, connection).await??)
}

/// Answers for a request that takes too long, a body that never ends included.
pub(super) async fn in_time(request: Request, next: Next) -> Response {
    match timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let text = format!("no answer within {} s", ANSWER_WITHIN.as_secs());
            ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                text,
                "ask again; `cic operations` shows what was done",
            )
            .into_response()
        }
    }
}
