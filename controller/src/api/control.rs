//! The control plane itself: its checks, and the providers' lists against the store.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::error::ApiError;
use super::server::Api;
use crate::health::CheckState;
use crate::store::{StoredCluster, StoredSync};

#[derive(Debug, Serialize)]
pub(super) struct Sync {
    providers: Vec<StoredSync>,
    clusters: Vec<StoredCluster>,
}

/// `GET /v1/sync`
pub(super) async fn sync(State(api): State<Api>) -> Result<Json<Sync>, ApiError> {
    let (providers, clusters) = (api.database.syncs().await?, api.database.clusters().await?);
    Ok(Json(Sync { providers, clusters }))
}

#[derive(Debug, Serialize)]
pub(super) struct Health {
    checks: Vec<CheckState>,
}

/// `GET /v1/health`: 200 whatever the checks say; empty before the first round.
pub(super) async fn health(State(api): State<Api>) -> Json<Health> {
    Json(Health { checks: api.checks().to_vec() })
}
