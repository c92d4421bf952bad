//! VMs without a row: what is there, and what an operator wants done with one.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cic_common::id::{DeploymentName, NodeId};
use serde::{Deserialize, Serialize};

use super::changes::{clean, parse};
use super::error::ApiError;
use super::reads::Timed;
use super::server::Api;
use crate::core::{Event, OrphanView, OrphanWish};

#[derive(Debug, Serialize)]
pub(super) struct Orphans {
    orphans: Vec<OrphanView>,
    /// VMs of other fleets in the last listings.
    foreign_count: usize,
}

/// `GET /v1/orphans`
pub(super) async fn orphans(State(api): State<Api>) -> Json<Timed<Orphans>> {
    let published = api.look().await;
    let (orphans, foreign_count) = (published.view.orphans.clone(), published.view.foreign_count);
    Timed::new(&published, Orphans { orphans, foreign_count })
}

/// The body may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// Who takes it in. When left out, the deployment in whose cluster it is named, or the only one of its provider.
    #[serde(default)]
    deployment: Option<DeploymentName>,
    #[serde(default)]
    reason: Option<String>,
}

/// The answer to a wish about an orphan.
#[derive(Debug, Serialize)]
pub(super) struct Accepted {
    node: NodeId,
    accepted: OrphanWish,
}

/// `POST /v1/orphans/NODE/adopt`
pub(super) async fn adopt(
    State(api): State<Api>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let (orphan, wish) = (known(&api, &id).await?, wish(&body)?);
    let Some(name) = wish.deployment.or(orphan.deployment) else {
        let what = format!("deployment: missing, and the name of {} does not tell which", orphan.node);
        return Err(ApiError::mistakes(vec![what]));
    };
    let published = api.look().await;
    let mut all = published.view.deployments.iter().map(|view| &view.deployment);
    if !all.any(|known| known.name == name && known.provider == orphan.provider) {
        let what = format!("deployment: there is no {name} at provider {}", orphan.provider);
        return Err(ApiError::mistakes(vec![what]));
    }
    ask(&api, orphan.node, OrphanWish::Adopt { deployment: name }, wish.reason).await
}

/// `POST /v1/orphans/NODE/terminate`
pub(super) async fn terminate(
    State(api): State<Api>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let (orphan, wish) = (known(&api, &id).await?, wish(&body)?);
    if wish.deployment.is_some() {
        return Err(ApiError::mistakes(vec!["deployment: has no meaning here".to_owned()]));
    }
    ask(&api, orphan.node, OrphanWish::Terminate, wish.reason).await
}

async fn ask(
    api: &Api,
    node: NodeId,
    wish: OrphanWish,
    reason: Option<String>,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let event = Event::OrphanAsked { node: node.clone(), wish: wish.clone(), reason: clean(reason) };
    api.driver.asking.ask(event).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { node, accepted: wish })))
}

async fn known(api: &Api, id: &str) -> Result<OrphanView, ApiError> {
    let published = api.look().await;
    let found = published.view.orphans.iter().find(|orphan| orphan.node.as_str() == id).cloned();
    let hint = "`cic orphans` lists them; one with a row is a node";
    found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, format!("no orphan {id:?}"), hint))
}

fn wish(body: &[u8]) -> Result<Wish, ApiError> {
    if body.is_empty() { Ok(Wish::default()) } else { parse(body) }
}
