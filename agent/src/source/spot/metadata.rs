//! Asking a metadata service: HTTP/1.1 over one connection that is kept, with a deadline for everything and no proxy.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{DATE, ETAG, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::moment::unix_ms_of;

/// Where every cloud's metadata service listens, a link-local address (RFC 3927).
pub const ADDRESS: &str = "169.254.169.254:80";

/// Longest answer that is read. Azure's document of a scale set of 100 is some 30 KB.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Why an answer is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("no connection: {0}")]
    Connect(String),
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("answer broke off: {0}")]
    Broken(String),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("no session token: {0}")]
    Token(String),
    #[error("not understood: {0}")]
    NotUnderstood(String),
}

/// What a service said.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) etag: Option<String>,
    /// The service's own wall clock, in milliseconds since 1970. A deadline is compared with this one where it is known:
    /// that of the VM may be wrong.
    pub(super) at_unix_ms: Option<u64>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as text without the white space around it; empty where it is no text.
    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_default().trim()
    }
}

/// One question.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Question {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A way to one service. Each source has its own, so that none waits for another's answer.
#[derive(Debug)]
pub(super) struct Metadata {
    /// `host:port`.
    address: String,
    sender: Option<SendRequest<Full<Bytes>>>,
    /// Drives the connection; aborted with it.
    driver: JoinSet<()>,
}

impl Metadata {
    pub(super) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), sender: None, driver: JoinSet::new() }
    }

    /// Asks once, over the kept connection where it still stands. Not cancel safe: a question that is dropped costs the
    /// connection.
    pub(super) async fn ask(&mut self, question: &Question, deadline: Duration) -> Result<Answer, Fault> {
        let kept = self.sender.take().filter(|sender| !sender.is_closed());
        let was_kept = kept.is_some();
        let result =
            timeout(deadline, self.exchange(question, kept)).await.unwrap_or(Err(Fault::Late(deadline)));
        match result {
            // The service had closed it meanwhile, which it may at any moment.
            Err(Fault::Broken(_)) if was_kept => {
                timeout(deadline, self.exchange(question, None)).await.unwrap_or(Err(Fault::Late(deadline)))
            }
            result => result,
        }
    }

    async fn exchange(
        &mut self,
        question: &Question,
        kept: Option<SendRequest<Full<Bytes>>>,
    ) -> Result<Answer, Fault> {
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let broken = |error: hyper::Error| Fault::Broken(chain(&error));
        sender.ready().await.map_err(broken)?;
        let answer = sender.send_request(self.request(question)?).await.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| Fault::Broken(chain(error.as_ref())))?.to_bytes();
        self.sender = Some(sender);
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        Ok(Answer {
            status: head.status,
            etag: text(ETAG).map(str::to_owned),
            at_unix_ms: text(DATE).and_then(unix_ms_of),
            headers: head.headers,
            body,
        })
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        let failed = |error: &dyn std::error::Error| Fault::Connect(chain(error));
        self.driver.abort_all();
        let stream = TcpStream::connect(&self.address).await.map_err(|error| failed(&error))?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        self.driver = JoinSet::new();
        self.driver.spawn(async move {
            // Its error is the question's, which tells it.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn request(&self, question: &Question) -> Result<Request<Full<Bytes>>, Fault> {
        let mut builder = Request::builder()
            .method(question.method.clone())
            .uri(&question.path)
            .header(HOST, &self.address);
        for (name, value) in &question.headers {
            builder = builder.header(*name, value);
        }
        builder.body(Full::new(question.body.clone())).map_err(|error| Fault::Broken(error.to_string()))
    }
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
