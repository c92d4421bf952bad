//! Who leads: asked, changed, and whom a standby sends its clients to.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use cic_common::id::{ControllerId, Term};
use serde::Serialize;

use super::error::ApiError;
use super::server::Api;
use crate::ha::Role;
use crate::store::Holder;

/// A state older than this is no answer any more. A standby reads the store each second.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// `GET /v1/leader`, and part of `/healthz`.
#[derive(Debug, Serialize)]
pub(super) struct Word {
    /// Who answers.
    controller: ControllerId,
    /// What that one is.
    role: &'static str,
    /// The term that it decides under or follows.
    term: Term,
    /// Who leads, as far as it knows.
    leader: Option<Named>,
}

#[derive(Debug, Serialize)]
struct Named {
    controller: ControllerId,
    api: String,
}

impl From<Holder> for Named {
    fn from(Holder { controller, api }: Holder) -> Self {
        Self { controller, api }
    }
}

pub(super) fn word(api: &Api) -> Word {
    let (role, published, own) = (api.leadership.role(), api.last(), api.leadership.own());
    let may_act = role.may_act(api.clock.now());
    let (role, leader) = match role {
        Role::Leader { .. } if may_act.is_some() => ("leader", Some(own.clone())),
        // Its lease may be over; nobody else is known to lead.
        Role::Leader { .. } => ("distrusting", None),
        Role::Standby { leader } => ("standby", leader),
    };
    Word {
        controller: own.controller.clone(),
        role,
        term: published.view.term,
        leader: leader.map(Named::from),
    }
}

pub(super) async fn leader(State(api): State<Api>) -> Json<Word> {
    Json(word(&api))
}

/// `GET /healthz/leader`: 200 on the leader, once it decides and as long as its lease holds, else 503. For a load balancer
/// or a name service that is to find the leader.
pub(super) async fn healthz_leader(State(api): State<Api>) -> (StatusCode, Json<Word>) {
    let may_act = api.leadership.may_act(api.clock.now());
    let is_leading = may_act.is_some() && api.last().leads == may_act;
    (status(is_leading), Json(word(&api)))
}

/// `GET /healthz/ready`: 200 where reads are answered from a state no older than 10 s, on leader and standby alike.
pub(super) async fn healthz_ready(State(api): State<Api>) -> (StatusCode, Json<Word>) {
    let (now, published) = (api.clock.now(), api.last());
    let has_begun = published.now_unix_ms > 0;
    let is_fresh = [published.view.now, published.rows_at].iter().all(|at| now.since(*at) < STALE_AFTER);
    (status(has_begun && is_fresh), Json(word(&api)))
}

fn status(is_good: bool) -> StatusCode {
    if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The answer to a hand-over.
#[derive(Debug, Serialize)]
pub(super) struct HandedOver {
    /// The term that ended.
    term: Term,
    stands_back_ms: u128,
}

/// `POST /v1/failover`: the leader stores what it has decided, releases the lease and stands back.
pub(super) async fn failover(State(api): State<Api>) -> Result<(StatusCode, Json<HandedOver>), ApiError> {
    let term = api.leadership.hand_over().await.map_err(|error| {
        let hint = "this controller acts no more; another leads within 5 s";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), hint)
    })?;
    let stands_back_ms = crate::ha::LeaseTiming::default().stand_back.as_millis();
    let term = term.ok_or_else(nobody)?;
    Ok((StatusCode::ACCEPTED, Json(HandedOver { term, stands_back_ms })))
}

/// Sends a change to the leader, with its body: 307. The target is the base url that the leader stored with its lease, and
/// nothing of the request but its path. A standby asks for no token: it does nothing but say where.
pub(super) async fn redirect(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match api.leadership.role() {
        Role::Leader { .. } => Ok(next.run(request).await),
        Role::Standby { leader: Some(leader) } => {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let target = HeaderValue::from_str(&format!("{}{path}", leader.api)).map_err(|_| nobody())?;
            let message = format!("{} leads, not this controller", leader.controller);
            let hint = format!("send it to {}", leader.api);
            let mut response = ApiError::new(StatusCode::TEMPORARY_REDIRECT, message, hint).into_response();
            response.headers_mut().insert(LOCATION, target);
            Ok(response)
        }
        Role::Standby { leader: None } => Err(nobody()),
    }
}

fn nobody() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no controller is known to lead",
        "one does within 5 s of the loss of another, while the database answers; try again",
    )
}
