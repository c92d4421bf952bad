//! Whether the engine answers: `/health`, `/v1/models` names the model, one 1-token completion.
//!
//! A real vLLM answers `/health` with 200 while it is paused or draining, so that alone proves nothing.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::core::ProbeFault;

/// Longest answer that is read: a model list or one token are far below.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Asks the engine on `port`. With `deep` also for one token of `model`.
///
/// # Errors
/// The first step that failed, with its cause; a step unanswered within `deadline` has failed.
pub async fn probe(port: u16, model: &str, deep: bool, deadline: Duration) -> Result<(), ProbeFault> {
    let ask = |method, path, body| within(deadline, exchange(port, method, path, body));
    let (status, _) = ask(Method::GET, "/health", None).await.map_err(ProbeFault::Health)?;
    if status != 200 {
        return Err(ProbeFault::Health(format!("status {status}")));
    }
    if !deep {
        return Ok(());
    }
    let (status, body) = ask(Method::GET, "/v1/models", None).await.map_err(ProbeFault::Models)?;
    let list: Value = serde_json::from_slice(&body).unwrap_or_default();
    let names: Vec<&str> =
        list["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
    if status != 200 || !names.contains(&model) {
        return Err(ProbeFault::Models(format!("status {status}, serves {names:?} and not {model:?}")));
    }
    let request = json!({ "model": model, "prompt": "1", "max_tokens": 1 }).to_string();
    let answer = ask(Method::POST, "/v1/completions", Some(request)).await;
    let (status, body) = answer.map_err(ProbeFault::Completion)?;
    let completion: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status != 200 || completion["choices"].as_array().is_none_or(Vec::is_empty) {
        let text = String::from_utf8_lossy(&body);
        return Err(ProbeFault::Completion(format!(
            "status {status}: {}",
            text.chars().take(200).collect::<String>()
        )));
    }
    Ok(())
}

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Box<dyn std::error::Error + Send + Sync>>>,
) -> Result<T, String> {
    match timeout(deadline, work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", deadline.as_secs())),
    }
}

async fn exchange(
    port: u16,
    method: Method,
    path: &str,
    body: Option<String>,
) -> Result<(u16, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        Ok((status, body))
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    // Cancel safe: both are polled by reference; a connection that ends first has delivered all it will.
    tokio::select! {
        result = &mut answer => result,
        result = &mut connection => {
            result?;
            answer.await
        }
    }
}
