//! Which path answers what.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::engine::{Engine, Mode};
use crate::generation::Answer;
use crate::reply::{self, ApiError, Envelope, Usage};
use crate::request::{self, Job};
use crate::{sse, tokens};

/// Larger than any prompt that fits a context.
const BODY_BYTES_MAX: usize = 64 << 20;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) async fn answer(
    engine: Arc<Engine>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let wanted = match head.uri.path() {
        "/health" | "/ping" | "/version" | "/v1/models" | "/metrics" => Method::GET,
        "/v1/completions"
        | "/v1/chat/completions"
        | "/v1/chat/completions/render"
        | "/tokenize"
        | "/detokenize" => Method::POST,
        _ => return Ok(json_reply(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"}))),
    };
    if head.method != wanted {
        let mut reply = json_reply(StatusCode::METHOD_NOT_ALLOWED, &json!({"detail": "Method Not Allowed"}));
        let allowed = if wanted == Method::GET { "GET" } else { "POST" };
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return Ok(reply);
    }
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return Ok(json_reply(StatusCode::PAYLOAD_TOO_LARGE, &json!({"detail": "Content Too Large"})));
    };
    let body = body.to_bytes();
    let reply = match head.uri.path() {
        "/health" | "/ping" => Ok(health(&engine)),
        "/version" => Ok(ok(&json!({"version": reply::VERSION}))),
        "/v1/models" => Ok(models(&engine)),
        "/metrics" => Ok(metrics(&engine)),
        "/v1/completions" => generate(&engine, Job::completion(&body, &engine.served)).await,
        "/v1/chat/completions" => generate(&engine, Job::chat(&body, &engine.served)).await,
        "/tokenize" => request::to_tokenize(&body, &engine.served).map(|tokens| tokenized(&engine, &tokens)),
        "/detokenize" => request::to_detokenize(&body, &engine.served)
            .map(|tokens| ok(&json!({"prompt": tokens::decode(&tokens)}))),
        _ => Err(ApiError::scale_out_is_off()),
    };
    Ok(reply.unwrap_or_else(|error| json_reply(error.status, &error.body())))
}

async fn generate(engine: &Arc<Engine>, job: Result<Job, ApiError>) -> Result<Response<Body>, ApiError> {
    let job = job?;
    let generations = engine.admit(&job)?;
    if job.is_stream {
        let frames = sse::events(&job, generations).map(|event| Ok(Frame::data(event)));
        return Ok(with_type("text/event-stream; charset=utf-8", StreamBody::new(frames).boxed_unsync()));
    }
    let answers = join_all(generations.into_iter().map(|generation| generation.whole())).await;
    let answers: Option<Vec<Answer>> = answers.into_iter().collect();
    let answers = answers.ok_or_else(ApiError::core_is_dead)?;
    let usage = Usage {
        prompt_tokens: job.prompts.iter().map(Vec::len).sum(),
        completion_tokens: answers.iter().map(|answer| answer.tokens.len()).sum(),
    };
    Ok(ok(&Envelope::new(&job).whole(&answers, usage)))
}

fn health(engine: &Engine) -> Response<Body> {
    let is_healthy = engine.mode() != Mode::Dead && !engine.options.faults.is_unhealthy;
    let mut reply = Response::new(Full::default().boxed_unsync());
    *reply.status_mut() = if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply
}

fn models(engine: &Engine) -> Response<Body> {
    let root = engine.options.model.to_string_lossy();
    ok(&reply::models(&engine.served, &root, engine.started_at_unix))
}

fn metrics(engine: &Engine) -> Response<Body> {
    let page = engine.metrics().render(&engine.served.names[0]);
    with_type("text/plain; version=1.0.0; charset=utf-8", Full::from(page).boxed_unsync())
}

fn tokenized(engine: &Engine, tokens: &[tokens::Token]) -> Response<Body> {
    let max_model_len = engine.served.max_model_len;
    ok(&json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens, "token_strs": null}))
}

fn ok(value: &Value) -> Response<Body> {
    json_reply(StatusCode::OK, value)
}

fn json_reply(status: StatusCode, value: &Value) -> Response<Body> {
    let mut reply = with_type("application/json", Full::from(value.to_string()).boxed_unsync());
    *reply.status_mut() = status;
    reply
}

fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
