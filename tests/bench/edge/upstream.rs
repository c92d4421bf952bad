//! `cic-bench serve …`: the fastest engine there can be, as the agent starts one.
//!
//! It takes the command line of `vllm serve`, answers what the agent and the routers ask an engine, and has every answer
//! ready made. A stream's chunks come without a gap, each in a write of its own as those of a real engine do.

use std::convert::Infallible;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::bodies::{Api, Asked, Bodies};

/// The first word of the command line that makes this program an engine.
pub(crate) const COMMAND: &str = "serve";

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Serves until it is killed.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().collect();
    let value = |flag: &str| words.iter().skip_while(|word| *word != flag).nth(1);
    // Asked for its flags (`--help=all`) it has none to tell.
    let (Some(port), Some(model)) = (value("--port"), value("--served-model-name")) else {
        return Ok(ExitCode::SUCCESS);
    };
    let engine = Arc::new(Engine::new(model));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(engine, port.parse()?))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(engine: Arc<Engine>, port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let engine = Arc::clone(&engine);
                async move { engine.answer(request).await }
            });
            // A client that leaves is no fault.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

struct Engine {
    bodies: Arc<Bodies>,
    models: Bytes,
    answer_count: AtomicU64,
}

impl Engine {
    fn new(model: &str) -> Self {
        let entry =
            json!({ "id": model, "object": "model", "created": 0, "owned_by": "vllm", "root": model });
        let models = json!({ "object": "list", "data": [entry] }).to_string().into();
        Self { bodies: Arc::new(Bodies::new(model)), models, answer_count: AtomicU64::new(0) }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
        let api = match (request.method(), request.uri().path()) {
            (&Method::POST, "/v1/completions") => Api::Completions,
            (&Method::POST, "/v1/chat/completions") => Api::Chat,
            (_, "/health") => return Ok(answer("text/plain", Bytes::new())),
            (_, "/v1/models") => return Ok(answer("application/json", self.models.clone())),
            (_, "/metrics") => return Ok(answer("text/plain; version=1.0.0", self.metrics())),
            _ => {
                let mut answer = answer("application/json", Bytes::from_static(br#"{"detail":"Not Found"}"#));
                *answer.status_mut() = StatusCode::NOT_FOUND;
                return Ok(answer);
            }
        };
        let body = request.into_body().collect().await?.to_bytes();
        self.answer_count.fetch_add(1, Ordering::Relaxed);
        let Ok(asked) = serde_json::from_slice::<Asked>(&body) else {
            let mut answer = answer("application/json", Bytes::from_static(br#"{"error":{"code":400}}"#));
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(answer);
        };
        let answers = self.bodies.of(api, &asked);
        if !asked.stream {
            return Ok(answer("application/json", answers.whole.clone()));
        }
        // Bytes are counted references: nothing is copied.
        let events = Events { events: answers.events.clone().into_iter(), is_due: false };
        Ok(with_type("text/event-stream; charset=utf-8", events.boxed_unsync()))
    }

    /// What the agent reads of vLLM's page. Nothing is ever seen at work, for no answer takes any time.
    fn metrics(&self) -> Bytes {
        let count = self.answer_count.load(Ordering::Relaxed);
        Bytes::from(format!(
            "vllm:num_requests_running{{engine=\"0\"}} 0.0\nvllm:num_requests_waiting{{engine=\"0\"}} 0.0\n\
             vllm:iteration_tokens_total_count{{engine=\"0\"}} {count}.0\n"
        ))
    }
}

fn answer(kind: &'static str, body: Bytes) -> Answer {
    with_type(kind, Full::new(body).boxed_unsync())
}

fn with_type(kind: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// A stream that hands the thread on before each event, so that the server writes what it has: the head by itself, then
/// each event by itself.
struct Events {
    events: std::vec::IntoIter<Bytes>,
    is_due: bool,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.is_due = !self.is_due;
        if self.is_due && !self.events.as_slice().is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.events.next().map(|event| Ok(Frame::data(event))))
    }
}
