//! Answers the edge makes itself, in OpenAI's error shape: `{"error":{message,type,param,code}}`.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

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

/// Why a node does not take a peer's request; the sender tries another.
pub const REFUSED_HEADER: HeaderName = HeaderName::from_static("x-cic-refused");

/// Seconds after which a client may try again when no replica was usable. An engine that restarts takes longer,
/// another replica's return does not.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("5");

/// Why the edge answers instead of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    BodyTooLong { bytes_max: usize },
    BodyLate,
    BodyBroken,
    NoModelNamed { known: Vec<String> },
    UnknownModel { model: String, known: Vec<String> },
    UnknownPath { path: String },
    NoReplica { model: String, why: String },
    Broken { model: String, why: String },
    Late { model: String },
}

impl Refusal {
    pub(super) fn into_response(self) -> Response<PeerBody> {
        let known = |models: &[String]| match models {
            [] => "no model is served here yet".to_owned(),
            models => format!("models served here: {}", models.join(", ")),
        };
        let (status, kind, param, code, message) = match self {
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
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_S);
        }
        response
    }
}

/// A peer's request this node does not take, with the reason for the sender's log.
pub(super) fn refuse_peer(reason: &str) -> Response<PeerBody> {
    let refusal = Refusal::NoReplica { model: "this node".to_owned(), why: reason.to_owned() };
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
