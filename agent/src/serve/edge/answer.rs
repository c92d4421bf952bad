//! Answers the edge makes itself, in OpenAI's error shape: `{"error":{message,type,param,code}}`.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::user_port::Denial;
use crate::serve::peer::PeerBody;

/// Which node's engine answered.
pub const NODE_HEADER: HeaderName = HeaderName::from_static("x-cic-node");

/// The client's own id of the request, or one made here.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// On a request between nodes: every other replica was tried, so that a reluctant one should take it.
pub const LAST_RESORT_HEADER: HeaderName = HeaderName::from_static("x-cic-last-resort");

/// The class of a request: `latency_critical`, `standard` or `batch`.
pub const CLASS_HEADER: HeaderName = HeaderName::from_static("x-cic-class");

/// On a request between nodes: its stream goes on elsewhere when this node hands it over.
pub(super) const RESUMABLE_HEADER: HeaderName = HeaderName::from_static("x-cic-resumable");

/// On the answer to such a request: its stream never stays without a byte for long, see [`super::pulse`].
pub(super) const PULSE_HEADER: HeaderName = HeaderName::from_static("x-cic-pulse");

/// Why a node does not take a peer's request; the sender tries another.
pub const REFUSED_HEADER: HeaderName = HeaderName::from_static("x-cic-refused");

/// On the answer of a request that another node had when it was lost: the id of that request.
pub const RESTORED_HEADER: HeaderName = HeaderName::from_static("x-cic-restored");

/// Seconds that a request may wait for a replica: its client would rather wait than be refused.
pub const WAIT_HEADER: HeaderName = HeaderName::from_static("x-cic-wait");

/// After which a client may try again when no replica was usable, or a full one did not say. An engine that restarts
/// takes longer, another replica's return and a completion of 200 tokens do not.
pub(super) const RETRY_AFTER_UNSAID: Duration = Duration::from_secs(5);

/// Bounds of what a client is told to wait. OpenAI's clients obey a Retry-After of at most 60 s; half of it keeps a
/// crowd from coming back as one.
pub(super) const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Why the edge answers instead of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    BodyTooLong {
        bytes_max: usize,
    },
    BodyLate,
    BodyBroken,
    NoModelNamed {
        known: Vec<String>,
    },
    UnknownModel {
        model: String,
        known: Vec<String>,
    },
    UnknownPath {
        path: String,
    },
    NoReplica {
        model: String,
        why: String,
    },
    /// Every replica there is has all it may have.
    Full {
        model: String,
        why: String,
        retry_after: Duration,
    },
    Broken {
        model: String,
        why: String,
    },
    Late {
        model: String,
    },
    Denied(Denial),
}

impl Refusal {
    pub(super) fn into_response(self) -> Response<PeerBody> {
        let known = |models: &[String]| match models {
            [] => "no model is served here yet".to_owned(),
            models => format!("models served here: {}", models.join(", ")),
        };
        let retry_after = match &self {
            Self::NoReplica { .. } => Some(RETRY_AFTER_UNSAID),
            Self::Full { retry_after, .. } => Some(*retry_after),
            Self::Denied(_)
            | Self::BodyTooLong { .. }
            | Self::BodyLate
            | Self::BodyBroken
            | Self::NoModelNamed { .. }
            | Self::UnknownModel { .. }
            | Self::UnknownPath { .. }
            | Self::Broken { .. }
            | Self::Late { .. } => None,
        };
        let (status, kind, param, code, message) = match self {
            Self::Denied(denial) => return denial.into_response(),
            Self::BodyTooLong { bytes_max } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "invalid_request_error",
                None,
                "request_too_large",
                format!("request body is longer than {bytes_max} bytes"),
            ),
            Self::BodyLate => (
                StatusCode::REQUEST_TIMEOUT,
                "invalid_request_error",
                None,
                "request_timeout",
                "request body did not arrive in time".to_owned(),
            ),
            Self::BodyBroken => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                None,
                "request_broken",
                "request body broke off".to_owned(),
            ),
            Self::NoModelNamed { known: models } => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                Some("model"),
                "model_missing",
                format!("request names no model; {}", known(&models)),
            ),
            Self::UnknownModel { model, known: models } => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                Some("model"),
                "model_not_found",
                format!("model {model:?} does not exist; {}", known(&models)),
            ),
            Self::UnknownPath { path } => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                None,
                "not_found",
                format!("nothing at {path}; the API is below /v1/"),
            ),
            Self::NoReplica { model, why } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                None,
                "no_replica",
                format!("no replica of {model:?} is usable: {why}"),
            ),
            Self::Full { model, why, retry_after: _ } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                None,
                "replicas_full",
                format!("every replica of {model:?} is full: {why}"),
            ),
            Self::Broken { model, why } => (
                StatusCode::BAD_GATEWAY,
                "server_error",
                None,
                "replicas_failed",
                format!("replicas of {model:?} failed: {why}"),
            ),
            Self::Late { model } => (
                StatusCode::GATEWAY_TIMEOUT,
                "server_error",
                None,
                "replica_timeout",
                format!("no replica of {model:?} answered in time"),
            ),
        };
        let error = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
        let mut response = from_json(status, &error);
        if let Some(retry_after) = retry_after {
            // Whole seconds, and never sooner than what was said.
            let seconds = retry_after.as_millis().div_ceil(1000);
            let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A peer's request this node does not take, with the reason for the sender's log.
pub(super) fn refuse_peer(reason: &str) -> Response<PeerBody> {
    refused(Refusal::NoReplica { model: "this node".to_owned(), why: reason.to_owned() }, reason)
}

/// A peer's request that the own engine has no room for: the sender tries another, and tells its user 429 rather than
/// 503 when all are full.
pub(super) fn refuse_full(retry_after: Duration) -> Response<PeerBody> {
    refused(Refusal::Full { model: "this node".to_owned(), why: "full".to_owned(), retry_after }, "full")
}

fn refused(refusal: Refusal, reason: &str) -> Response<PeerBody> {
    let mut response = refusal.into_response();
    // A reason is one line of ours; what does not fit a header is left out, not the header.
    let plain: String = reason.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    let value = HeaderValue::from_str(&plain).unwrap_or_else(|_| HeaderValue::from_static("refused"));
    response.headers_mut().insert(REFUSED_HEADER, value);
    response
}

pub(super) fn from_json(status: StatusCode, json: &Value) -> Response<PeerBody> {
    let mut response = Response::new(full(Bytes::from(json.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn full(bytes: Bytes) -> PeerBody {
    Full::new(bytes).map_err(|never: std::convert::Infallible| match never {}).boxed_unsync()
}
