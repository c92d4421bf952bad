//! Answers to requests that the user port does not let in, in OpenAI's error shape.

use std::time::Duration;

use hyper::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::allowance::Exceeded;
use super::limits::{HEADERS_MAX, HELD_BODIES_BYTES_MAX};
use crate::serve::edge::answer::from_json;
use crate::serve::peer::PeerBody;

/// Bodies are held for as long as replicas take; some end each second.
const RETRY_WHEN_BODIES_END: Duration = Duration::from_secs(2);

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve::edge) enum Denial {
    NoKey,
    UnknownKey,
    ModelNotAllowed { model: String },
    PerMinute { retry_after: Duration },
    InFlight { retry_after: Duration },
    HeadersTooMany,
    BodiesTooMany,
}

impl Denial {
    pub(in crate::serve::edge) fn into_response(self) -> Response<PeerBody> {
        let (status, kind, code, retry_after, message) = match self {
            Self::NoKey => (
                StatusCode::UNAUTHORIZED,
                "invalid_request_error",
                "missing_api_key",
                None,
                "no API key; send `Authorization: Bearer KEY`".to_owned(),
            ),
            Self::UnknownKey => (
                StatusCode::UNAUTHORIZED,
                "invalid_request_error",
                "invalid_api_key",
                None,
                "this API key is not known here".to_owned(),
            ),
            Self::ModelNotAllowed { model } => (
                StatusCode::FORBIDDEN,
                "invalid_request_error",
                "model_not_allowed",
                None,
                format!("this API key may not use model {model:?}"),
            ),
            Self::PerMinute { retry_after } => (
                StatusCode::TOO_MANY_REQUESTS,
                "requests",
                "rate_limit_exceeded",
                Some(retry_after),
                "this API key has used its requests per minute".to_owned(),
            ),
            Self::InFlight { retry_after } => (
                StatusCode::TOO_MANY_REQUESTS,
                "requests",
                "rate_limit_exceeded",
                Some(retry_after),
                "this API key has as many requests under way as it may".to_owned(),
            ),
            Self::HeadersTooMany => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "invalid_request_error",
                "headers_too_many",
                None,
                format!("request has more than {HEADERS_MAX} headers"),
            ),
            Self::BodiesTooMany => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                "bodies_too_many",
                Some(RETRY_WHEN_BODIES_END),
                format!("{HELD_BODIES_BYTES_MAX} bytes of request bodies are held already"),
            ),
        };
        let error = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
        let mut response = from_json(status, &error);
        if let Some(retry_after) = retry_after {
            // A client that comes back a moment early is refused again.
            let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Exceeded> for Denial {
    fn from(exceeded: Exceeded) -> Self {
        match exceeded {
            Exceeded::PerMinute { retry_after } => Self::PerMinute { retry_after },
            Exceeded::InFlight { retry_after } => Self::InFlight { retry_after },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_denied_is_told_how_and_when_to_come_back() {
        let ms = Duration::from_millis;
        for (denial, status, retry_after) in [
            (Denial::NoKey, 401, None),
            (Denial::UnknownKey, 401, None),
            (Denial::ModelNotAllowed { model: "m".to_owned() }, 403, None),
            (Denial::PerMinute { retry_after: ms(1) }, 429, Some("1")),
            (Denial::PerMinute { retry_after: ms(9001) }, 429, Some("10")),
            (Denial::InFlight { retry_after: ms(1000) }, 429, Some("1")),
            (Denial::HeadersTooMany, 431, None),
            (Denial::BodiesTooMany, 503, Some("2")),
        ] {
            let response = denial.clone().into_response();
            assert_eq!(response.status().as_u16(), status, "{denial:?}");
            let said = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(said, retry_after, "{denial:?}");
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), status == 401, "{denial:?}");
        }
    }
}
