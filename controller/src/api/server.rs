//! The server: its state, its routes and its end.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post, put};
use cic_common::supervise::{Supervisor, TaskResult};
use cic_common::time::Clock;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::access::{self, AdminToken};
use super::error::ApiError;
use super::{changes, control, leader, orphans, reads};
use super::{metrics, port};
use crate::driver::Outlets;
use crate::ha::Leadership;
use crate::health::Checks;
use crate::links::Links;
use crate::store::Database;
use crate::views::Published;

/// Largest body taken: a deployment with a page of engine arguments is 4 KiB.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    pub(super) driver: Outlets,
    pub(super) database: Database,
    pub(super) leadership: Leadership,
    pub(super) clock: Clock,
    pub(super) admin_token: Option<AdminToken>,
    /// One change of deployments at a time: cluster numbers are handed out from what the view shows.
    pub(super) edits: Arc<Semaphore>,
    pub(super) links: Option<Links>,
    checks: Option<watch::Receiver<Checks>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// `admin_token`: when set, changes need it as bearer token.
    #[must_use]
    pub fn new(
        driver: Outlets,
        database: Database,
        leadership: Leadership,
        clock: Clock,
        admin_token: Option<&str>,
        links: Option<Links>,
    ) -> Self {
        Self {
            driver,
            database,
            leadership,
            clock,
            admin_token: admin_token.map(AdminToken::new),
            edits: Arc::new(Semaphore::new(1)),
            links,
            checks: None,
        }
    }

    /// Shows what the monitor sees, too.
    #[must_use]
    pub fn with_checks(mut self, checks: watch::Receiver<Checks>) -> Self {
        self.checks = Some(checks);
        self
    }

    pub(super) fn checks(&self) -> Checks {
        self.checks.as_ref().map(|checks| Arc::clone(&checks.borrow())).unwrap_or_default()
    }

    /// The fleet as it is.
    pub(super) async fn look(&self) -> Arc<Published> {
        self.driver.views.look().await
    }

    /// The fleet as it was shown last, for those who must not wait for the driver.
    pub(super) fn last(&self) -> Arc<Published> {
        self.driver.views.last()
    }
}

/// Serves until `token` is cancelled and the requests under way are answered.
///
/// # Errors
/// Never; the type is that of a supervised task.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    supervisor: Supervisor,
    token: CancellationToken,
) -> TaskResult {
    port::run(listener, routes(api), supervisor, token).await
}

fn routes(api: Api) -> Router {
    let changes = Router::new()
        .route("/v1/deployments/{name}", put(changes::deploy))
        .route("/v1/nodes/{id}/drain", post(changes::drain))
        .route("/v1/nodes/{id}/replace", post(changes::replace))
        .route("/v1/orphans/{id}/adopt", post(orphans::adopt))
        .route("/v1/orphans/{id}/terminate", post(orphans::terminate))
        .route("/v1/tokens", post(changes::token))
        .route("/v1/failover", post(leader::failover))
        .route_layer(middleware::from_fn_with_state(api.clone(), access::check))
        .route_layer(middleware::from_fn_with_state(api.clone(), leader::redirect));
    Router::new()
        .route("/v1/view", get(reads::view))
        .route("/v1/nodes", get(reads::nodes))
        .route("/v1/nodes/{id}", get(reads::node))
        .route("/v1/nodes/{id}/why", get(reads::why))
        .route("/v1/deployments", get(reads::deployments))
        .route("/v1/orphans", get(orphans::orphans))
        .route("/v1/events", get(reads::events))
        .route("/v1/operations", get(reads::operations))
        .route("/v1/leader", get(leader::leader))
        .route("/v1/sync", get(control::sync))
        .route("/v1/health", get(control::health))
        .route("/healthz", get(reads::healthz))
        .route("/healthz/leader", get(leader::healthz_leader))
        .route("/healthz/ready", get(leader::healthz_ready))
        .route("/metrics", get(metrics::metrics))
        .merge(changes)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn(port::in_time))
        .with_state(api)
}

async fn no_route() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no such path", "paths begin with /v1, /healthz or /metrics")
}

async fn no_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method", "lists take GET")
}
