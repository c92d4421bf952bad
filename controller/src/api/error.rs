//! What the API says when it does not do what it was asked: what is wrong, and the way out.

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::driver::NotStored;
use crate::store::StoreError;

/// `{"error":{…}}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorText,
}

/// The error in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorText {
    pub message: String,
    pub hint: String,
    /// Every mistake in what was sent, when there may be several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<String>,
}

/// A refusal on its way out.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    text: ErrorText,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status, text: ErrorText { message: message.into(), hint: hint.into(), mistakes: Vec::new() } }
    }

    pub(super) fn mistakes(mistakes: Vec<String>) -> Self {
        let message = mistakes.join("; ");
        let hint = "correct what is listed and send it again".to_owned();
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, text: ErrorText { message, hint, mistakes } }
    }

    pub(super) fn no_node(node: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no node {node:?}"), "`cic nodes` lists them")
    }
}

impl From<NotStored> for ApiError {
    fn from(error: NotStored) -> Self {
        let hint = "the store does not answer; traffic is not affected. Look before sending it again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string(), hint)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        warn!(%error, ?source, "store did not answer the API");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            error.to_string(),
            "try again; `/healthz` tells when the store answers",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: self.text })).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
        }
        response
    }
}
