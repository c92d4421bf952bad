//! Reads: from the published view, or from the store.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use cic_common::id::NodeId;
use cic_common::report::NodeReport;
use cic_common::time::Mono;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::leader;
use super::server::Api;
use crate::core::{DeploymentView, NodeView, Operation, View};
use crate::store::StoredEvent;
use crate::views::Published;

/// Rows when no limit is given.
const LIMIT_DEFAULT: u32 = 100;

/// Events of a node shown with its `why`.
const WHY_EVENTS: u32 = 20;

/// A part of the view with the clock that places its moments: `unix = now_unix_ms - (now - moment)`.
#[derive(Debug, Serialize)]
pub(super) struct Timed<T> {
    now: Mono,
    now_unix_ms: u64,
    #[serde(flatten)]
    part: T,
}

impl<T> Timed<T> {
    pub(super) fn new(published: &Published, part: T) -> Json<Self> {
        Json(Self { now: published.view.now, now_unix_ms: published.now_unix_ms, part })
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Whole {
    now_unix_ms: u64,
    #[serde(flatten)]
    view: View,
}

/// `GET /v1/view`
pub(super) async fn view(State(api): State<Api>) -> Json<Whole> {
    let published = api.look().await;
    Json(Whole { now_unix_ms: published.now_unix_ms, view: published.view.clone() })
}

#[derive(Debug, Serialize)]
pub(super) struct Nodes {
    nodes: Vec<NodeView>,
}

/// `GET /v1/nodes`
pub(super) async fn nodes(State(api): State<Api>) -> Json<Timed<Nodes>> {
    let published = api.look().await;
    Timed::new(&published, Nodes { nodes: published.view.nodes.clone() })
}

#[derive(Debug, Serialize)]
pub(super) struct Node {
    node: NodeView,
}

/// `GET /v1/nodes/NODE`
pub(super) async fn node(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Timed<Node>>, ApiError> {
    let published = api.look().await;
    let node = find(&published, &id)?.clone();
    Ok(Timed::new(&published, Node { node }))
}

/// The evidence behind a node's last verdict, in order.
#[derive(Debug, Serialize)]
pub(super) struct Why {
    node: NodeId,
    belief: &'static str,
    since_unix_ms: u64,
    why: String,
    leaving: Option<String>,
    /// The node's own word.
    report: Option<NodeReport>,
    trail: Vec<TrailEntry>,
    /// From the store, oldest first; empty while it does not answer.
    events: Vec<StoredEvent>,
}

#[derive(Debug, Serialize)]
pub(super) struct TrailEntry {
    at_unix_ms: u64,
    text: String,
}

/// `GET /v1/nodes/NODE/why`
pub(super) async fn why(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Why>, ApiError> {
    let published = api.look().await;
    let node = find(&published, &id)?;
    let events = api.database.events(None, WHY_EVENTS, Some(&node.node)).await.unwrap_or_default();
    let entry =
        |(at, text): &(Mono, String)| TrailEntry { at_unix_ms: wall(&published, *at), text: text.clone() };
    Ok(Json(Why {
        node: node.node.clone(),
        belief: node.belief.as_str(),
        since_unix_ms: wall(&published, node.belief_since),
        why: node.why.clone(),
        leaving: node.leaving.clone(),
        report: node.report.clone(),
        trail: node.trail.iter().map(entry).collect(),
        events,
    }))
}

#[derive(Debug, Serialize)]
pub(super) struct Deployments {
    deployments: Vec<DeploymentView>,
}

/// `GET /v1/deployments`
pub(super) async fn deployments(State(api): State<Api>) -> Json<Timed<Deployments>> {
    let published = api.look().await;
    Timed::new(&published, Deployments { deployments: published.view.deployments.clone() })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    after: Option<u64>,
    limit: Option<u32>,
    node: Option<NodeId>,
}

#[derive(Debug, Serialize)]
pub(super) struct Events {
    events: Vec<StoredEvent>,
}

/// `GET /v1/events?after=ID&limit=N&node=NODE`: without `after` the newest, always oldest first.
pub(super) async fn events(
    State(api): State<Api>,
    query: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Events>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::mistakes(vec![error.body_text()]))?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    Ok(Json(Events { events: api.database.events(query.after, limit, query.node.as_ref()).await? }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OperationsQuery {
    limit: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct Operations {
    operations: Vec<Operation>,
}

/// `GET /v1/operations?limit=N`: the newest first, closed ones included.
pub(super) async fn operations(
    State(api): State<Api>,
    query: Result<Query<OperationsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Operations>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::mistakes(vec![error.body_text()]))?;
    Ok(Json(Operations { operations: api.database.operations(query.limit.unwrap_or(LIMIT_DEFAULT)).await? }))
}

#[derive(Debug, Serialize)]
pub(super) struct Health {
    status: &'static str,
    term: u64,
    is_settled: bool,
    store_answers: bool,
    leader: leader::Word,
}

/// `GET /healthz`: 200 from the first step of the core on. A store that is away does not make it fail: the
/// controller works on without it.
pub(super) async fn healthz(State(api): State<Api>) -> (StatusCode, Json<Health>) {
    let published = api.last();
    let has_begun = published.now_unix_ms > 0;
    let (code, status) =
        if has_begun { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "starting") };
    let health = Health {
        status,
        term: published.view.term.0,
        is_settled: published.view.is_settled,
        store_answers: api.leadership.queue_counts().failures_in_row == 0,
        leader: leader::word(&api),
    };
    (code, Json(health))
}

fn find<'a>(published: &'a Published, id: &str) -> Result<&'a NodeView, ApiError> {
    published.view.nodes.iter().find(|node| node.node.as_str() == id).ok_or_else(|| ApiError::no_node(id))
}

fn wall(published: &Published, at: Mono) -> u64 {
    let before_ms = published.view.now.as_millis().saturating_sub(at.as_millis());
    published.now_unix_ms.saturating_sub(before_ms)
}
