//! Changes: each is answered once the core took it and the store has it.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use cic_common::id::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::deployment::{Wanted, WantedBy};
use super::error::ApiError;
use super::server::Api;
use crate::core::{Deployment, Event};

/// How long a token made by hand is good for: a person has to carry it to the node.
const TOKEN_VALID_FOR: Duration = Duration::from_secs(24 * 3600);

/// Longest reason kept.
const REASON_CHARS_MAX: usize = 500;

/// `PUT /v1/deployments/NAME`
pub(super) async fn deploy(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Deployment>, ApiError> {
    let wanted: Wanted = parse(&body)?;
    let _turn = api.edits.acquire().await.map_err(|_| crate::driver::NotStored)?;
    let published = api.look().await;
    let by = WantedBy { name: &name, view: &published.view, now_unix_ms: api.clock.unix_ms() };
    let deployment = wanted.check(&by).map_err(ApiError::mistakes)?;
    api.driver.asking.ask(Event::Deployed(deployment.clone())).await?;
    // As the core took it: it keeps the cluster of a deployment it knows.
    let published = api.look().await;
    let mut taken = published.view.deployments.iter().map(|view| &view.deployment);
    let taken = taken.find(|taken| taken.name == deployment.name).cloned();
    Ok(Json(taken.unwrap_or(deployment)))
}

/// Why an operator wants it. The body may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    #[serde(default)]
    reason: Option<String>,
}

/// The answer to a wish about a node.
#[derive(Debug, Serialize)]
pub(super) struct Accepted {
    node: NodeId,
    accepted: &'static str,
}

/// `POST /v1/nodes/NODE/drain`
pub(super) async fn drain(
    State(api): State<Api>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let node = known_node(&api, &id).await?;
    let reason = reason(&body)?;
    api.driver.asking.ask(Event::DrainAsked { node: node.clone(), reason }).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { node, accepted: "drain" })))
}

/// `POST /v1/nodes/NODE/replace`
pub(super) async fn replace(
    State(api): State<Api>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Accepted>), ApiError> {
    let node = known_node(&api, &id).await?;
    let reason = reason(&body)?;
    api.driver.asking.ask(Event::ReplaceAsked { node: node.clone(), reason }).await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { node, accepted: "replace" })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFor {
    node: NodeId,
}

/// A fresh join token; it is shown once and never stored.
#[derive(Debug, Serialize)]
pub(super) struct NewToken {
    node: NodeId,
    token: String,
    expires_unix_ms: u64,
}

/// `POST /v1/tokens`
pub(super) async fn token(
    State(api): State<Api>,
    body: Bytes,
) -> Result<(StatusCode, Json<NewToken>), ApiError> {
    let TokenFor { node } = parse(&body)?;
    let token = api.database.create_join_token(&node, TOKEN_VALID_FOR).await?.to_string();
    let valid_ms = u64::try_from(TOKEN_VALID_FOR.as_millis()).unwrap_or(u64::MAX);
    let expires_unix_ms = api.clock.unix_ms().saturating_add(valid_ms);
    Ok((StatusCode::CREATED, Json(NewToken { node, token, expires_unix_ms })))
}

async fn known_node(api: &Api, id: &str) -> Result<NodeId, ApiError> {
    let published = api.look().await;
    let known = published.view.nodes.iter().find(|known| known.node.as_str() == id);
    known.map(|known| known.node.clone()).ok_or_else(|| ApiError::no_node(id))
}

fn reason(body: &[u8]) -> Result<String, ApiError> {
    let Reason { reason } = if body.is_empty() { Reason::default() } else { parse(body)? };
    Ok(clean(reason))
}

/// A reason as it is kept.
pub(super) fn clean(reason: Option<String>) -> String {
    let reason = reason.unwrap_or_else(|| "asked by an operator".to_owned());
    reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::mistakes(vec![format!("body: {error}")]))
}
