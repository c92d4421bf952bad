//! A user's request, read whole so that it can be sent more than once.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use cic_common::route::Class;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Uri};

use super::answer::{
    CLASS_HEADER, LAST_RESORT_HEADER, REQUEST_ID_HEADER, RESUMABLE_HEADER, Refusal, WAIT_HEADER,
};
use super::choice::Prompt;
use super::user_port::{Upload, Visit};

/// Longest request body. A context of 1 M tokens is about 4 MiB of text; images come as data URLs beside it.
pub(super) const EDGE_BODY_BYTES_MAX: usize = 8 << 20;

/// Longest request id taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Headers that belong to one connection (RFC 9110, 7.6.1), or that are made anew for the next.
static NOT_FORWARDED: [HeaderName; 10] = [
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

/// By which a client names a request that it repeats (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest idempotency key that is heeded.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// What is sent to a replica, as often as it takes.
#[derive(Debug, Clone)]
pub(super) struct Buffered {
    method: Method,
    target: Uri,
    headers: HeaderMap,
    /// What the user sent.
    asked: Upload,
    /// What a replica is sent.
    body: Bytes,
    pub(super) visit: Visit,
    pub(super) request_id: HeaderValue,
    /// As its header says; a class that nobody knows counts as the standard one.
    pub(super) class: Class,
    /// How long its client says that it would wait for a replica.
    pub(super) wait: Option<Duration>,
    /// Every willing replica was tried without success.
    pub(super) is_last_resort: bool,
    /// Read once, where it is asked for.
    prompt: OnceLock<Prompt>,
}

impl Buffered {
    /// Reads `request` to its end.
    pub(super) async fn read(request: Request<Incoming>, visit: Visit) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let body = Upload::read(body, EDGE_BODY_BYTES_MAX, &visit).await?;
        Ok(Self::new(parts, body, visit))
    }

    pub(super) fn new(parts: Parts, asked: Upload, visit: Visit) -> Self {
        let Parts { method, uri, mut headers, .. } = parts;
        let request_id = request_id_of(&headers);
        let class = class_of(&headers);
        let wait = headers.remove(WAIT_HEADER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let wait = wait.map(Duration::from_secs);
        strip(&mut headers);
        headers.remove(header::HOST);
        // It is said by the edge that tries, not by a user.
        headers.remove(LAST_RESORT_HEADER);
        headers.remove(RESUMABLE_HEADER);
        headers.insert(REQUEST_ID_HEADER, request_id.clone());
        // As it was capped, whatever a `Connection` header took away.
        headers.insert(CLASS_HEADER, HeaderValue::from_static(class.as_str()));
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // A path that came in as part of a URI is one.
        let target = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        Self {
            method,
            target,
            headers,
            body: asked.bytes.clone(),
            asked,
            visit,
            request_id,
            class,
            wait,
            is_last_resort: false,
            prompt: OnceLock::new(),
        }
    }

    /// The model named in a JSON body.
    pub(super) fn model(&self) -> Option<&str> {
        self.prompt().model.as_deref()
    }

    /// What its body tells the choice of a replica.
    pub(super) fn prompt(&self) -> &Prompt {
        self.prompt.get_or_init(|| Prompt::read(&self.asked.bytes))
    }

    /// Another request on behalf of the same user: a POST of JSON, or a GET where there is no body.
    pub(super) fn derived(&self, path: &str, body: Option<Bytes>) -> Self {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let target = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        let body = body.unwrap_or_default();
        // It was let in before, and is not shed half-way.
        let admitted_as = HeaderValue::from_static(Class::LatencyCritical.as_str());
        let mut headers = self.headers.clone();
        headers.insert(CLASS_HEADER, admitted_as);
        Self { method, target, headers, body, is_last_resort: false, ..self.clone() }
    }

    /// The same request for a stream that can be continued, with the body that makes it so.
    pub(super) fn resumable(mut self, body: Bytes) -> Self {
        self.body = body;
        self.headers.insert(RESUMABLE_HEADER, HeaderValue::from_static("1"));
        // Its events have to be read.
        self.headers.remove(header::ACCEPT_ENCODING);
        self
    }

    /// The same request as another API is to see it: `body` at `target`, and no header but these.
    pub(super) fn rewritten(&self, target: Uri, headers: HeaderMap, body: Bytes) -> Self {
        let asked = Upload::of(body.clone());
        Self { target, headers, asked, body, is_last_resort: false, ..self.clone() }
    }

    /// With its query.
    pub(super) fn path_and_query(&self) -> &str {
        self.target.path_and_query().map_or("/", |path| path.as_str())
    }

    /// Whether method and headers say that its body is all there is to it.
    pub(super) fn is_json_post(&self) -> bool {
        let content_type = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_json = content_type.is_some_and(|text| {
            text.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
        });
        self.method == Method::POST && is_json
    }

    pub(super) fn path(&self) -> &str {
        self.target.path()
    }

    /// The name under which its client may repeat it.
    pub(super) fn idempotency_key(&self) -> Option<&str> {
        let key = self.headers.get(IDEMPOTENCY_HEADER)?.to_str().ok()?;
        (!key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES_MAX).then_some(key)
    }

    /// What the user sent, as it counts among the bodies that are held.
    pub(super) fn upload(&self) -> &Upload {
        &self.asked
    }

    /// What the user sent.
    pub(super) fn body(&self) -> &Bytes {
        &self.asked.bytes
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

/// The class that a request's header names.
pub(super) fn class_of(headers: &HeaderMap) -> Class {
    let named = headers.get(CLASS_HEADER).and_then(|value| Class::parse(value.to_str().ok()?));
    named.unwrap_or_default()
}

/// Removes what belongs to the connection the message came on, including what its `Connection` header names.
pub(super) fn strip(headers: &mut HeaderMap) {
    // Most messages have one of these or none.
    let present = headers.keys().filter(|name| NOT_FORWARDED.contains(name)).cloned();
    let named = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok());
    let names: Vec<HeaderName> = present.chain(named).collect();
    for name in names {
        headers.remove(name);
    }
}

/// The client's own id of a request, or a new one.
pub(super) fn request_id_of(headers: &HeaderMap) -> HeaderValue {
    let own = headers.get(REQUEST_ID_HEADER).filter(|id| id.len() <= REQUEST_ID_BYTES_MAX);
    own.cloned().unwrap_or_else(fresh_id)
}

fn fresh_id() -> HeaderValue {
    let mut id = *b"cic-00000000000000000000000000000000";
    let mut drawn = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
    for digit in &mut id[4..] {
        *digit = b"0123456789abcdef"[(drawn & 0xf) as usize];
        drawn >>= 4;
    }
    HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static("cic"))
}
