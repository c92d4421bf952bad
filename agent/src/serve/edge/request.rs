//! A user's request, read whole so that it can be sent more than once.

use std::time::Duration;

use bytes::Bytes;
use cic_common::route::Class;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Uri};
use serde::Deserialize;

use super::answer::{CLASS_HEADER, LAST_RESORT_HEADER, REQUEST_ID_HEADER, RESUMABLE_HEADER, Refusal};

/// Longest request body. A context of 1 M tokens is about 4 MiB of text; images come as data URLs beside it.
pub(super) const EDGE_BODY_BYTES_MAX: usize = 8 << 20;

/// A client that takes longer to send its body is cut off. 8 MiB at 2 Mbit/s take 33 s.
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Longest request id taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Headers that belong to one connection (RFC 9110, 7.6.1), or that are made anew for the next.
const NOT_FORWARDED: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::EXPECT,
];

/// What is sent to a replica, as often as it takes.
#[derive(Debug, Clone)]
pub(super) struct Buffered {
    method: Method,
    target: Uri,
    headers: HeaderMap,
    body: Bytes,
    pub(super) request_id: HeaderValue,
    /// As its header says; a class that nobody knows counts as the standard one.
    pub(super) class: Class,
    /// Every willing replica was tried without success.
    pub(super) is_last_resort: bool,
}

#[derive(Deserialize)]
struct Named {
    model: Option<String>,
}

impl Buffered {
    /// Reads `request` to its end.
    pub(super) async fn read(request: Request<Incoming>) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let collected = Limited::new(body, EDGE_BODY_BYTES_MAX).collect();
        let body = match tokio::time::timeout(BODY_DEADLINE, collected).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(Refusal::BodyTooLong { bytes_max: EDGE_BODY_BYTES_MAX });
            }
            Ok(Err(_)) => return Err(Refusal::BodyBroken),
            Err(_) => return Err(Refusal::BodyLate),
        };
        Ok(Self::new(parts, body))
    }

    fn new(parts: Parts, body: Bytes) -> Self {
        let Parts { method, uri, mut headers, .. } = parts;
        let request_id = headers
            .get(REQUEST_ID_HEADER)
            .filter(|id| id.len() <= REQUEST_ID_BYTES_MAX)
            .cloned()
            .unwrap_or_else(fresh_id);
        let class = headers.get(CLASS_HEADER).and_then(|value| Class::parse(value.to_str().ok()?));
        let class = class.unwrap_or_default();
        strip(&mut headers);
        headers.remove(header::HOST);
        // It is said by the edge that tries, not by a user.
        headers.remove(LAST_RESORT_HEADER);
        headers.remove(RESUMABLE_HEADER);
        headers.insert(REQUEST_ID_HEADER, request_id.clone());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // A path that came in as part of a URI is one.
        let target = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        Self { method, target, headers, body, request_id, class, is_last_resort: false }
    }

    /// The model named in a JSON body.
    pub(super) fn model(&self) -> Option<String> {
        serde_json::from_slice::<Named>(&self.body).ok()?.model
    }

    /// Another request on behalf of the same user: a POST of JSON, or a GET where there is no body.
    pub(super) fn derived(&self, path: &str, body: Option<Bytes>) -> Self {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let target = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        let body = body.unwrap_or_default();
        Self { method, target, body, is_last_resort: false, ..self.clone() }
    }

    /// The same request for a stream that can be continued, with the body that makes it so.
    pub(super) fn resumable(mut self, body: Bytes) -> Self {
        self.body = body;
        self.headers.insert(RESUMABLE_HEADER, HeaderValue::from_static("1"));
        self
    }

    pub(super) fn path(&self) -> &str {
        self.target.path()
    }

    pub(super) fn body(&self) -> &Bytes {
        &self.body
    }

    /// One copy to send; `host` is what the receiver is called.
    pub(super) fn copy(&self, host: &HeaderValue) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(header::HOST, host.clone());
        if self.is_last_resort {
            request.headers_mut().insert(LAST_RESORT_HEADER, HeaderValue::from_static("1"));
        }
        request
    }
}

/// Removes what belongs to the connection the message came on, including what its `Connection` header names.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in NOT_FORWARDED.into_iter().chain(named) {
        headers.remove(name);
    }
}

fn fresh_id() -> HeaderValue {
    let id = format!("cic-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("cic"))
}
