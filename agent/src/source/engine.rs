//! Whether the engine answers, and how far it has come with its work: `/health`, `/metrics`, and where more is asked
//! for `/v1/models` and one token.
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

use crate::core::{Depth, ProbeFault, Reading, Work};

/// Longest answer that is read. `/metrics` of vLLM 0.32 is about 60 KiB an engine.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// One engine to ask.
#[derive(Debug, Clone)]
pub struct Asked {
    pub port: u16,
    pub model: String,
    /// A step unanswered for so long has failed.
    pub deadline: Duration,
    /// The token of a canary may take so long.
    pub canary_deadline: Duration,
}

/// Asks the engine as deeply as `depth` says. What was read is told even of an engine that fails.
pub async fn probe(asked: &Asked, depth: Depth) -> (Reading, Result<(), ProbeFault>) {
    let mut reading = Reading::default();
    let result = steps(asked, depth, &mut reading).await;
    (reading, result)
}

async fn steps(asked: &Asked, depth: Depth, reading: &mut Reading) -> Result<(), ProbeFault> {
    let Asked { port, deadline, .. } = *asked;
    let (status, _) =
        exchange(port, Method::GET, "/health", None, deadline).await.map_err(ProbeFault::Health)?;
    if status != 200 {
        return Err(ProbeFault::Health(format!("status {status}")));
    }
    match depth {
        Depth::Shallow => {
            reading.after = work(port, deadline).await;
            Ok(())
        }
        Depth::Canary => {
            reading.before = work(port, deadline).await;
            let result = completion(asked, asked.canary_deadline).await;
            reading.is_completed = result.is_ok();
            reading.after = work(port, deadline).await;
            result
        }
        Depth::Deep => {
            models(asked).await?;
            reading.before = work(port, deadline).await;
            // Without counters only the token tells, and behind a deep queue it takes its time.
            let patience = if reading.before.is_some() { deadline } else { asked.canary_deadline };
            let result = completion(asked, patience).await;
            reading.is_completed = result.is_ok();
            reading.after = work(port, deadline).await;
            result
        }
    }
}

async fn models(asked: &Asked) -> Result<(), ProbeFault> {
    let answer = exchange(asked.port, Method::GET, "/v1/models", None, asked.deadline).await;
    let (status, body) = answer.map_err(ProbeFault::Models)?;
    let list: Value = serde_json::from_slice(&body).unwrap_or_default();
    let names: Vec<&str> =
        list["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
    if status != 200 || !names.contains(&asked.model.as_str()) {
        return Err(ProbeFault::Models(format!(
            "status {status}, serves {names:?} and not {:?}",
            asked.model
        )));
    }
    Ok(())
}

async fn completion(asked: &Asked, deadline: Duration) -> Result<(), ProbeFault> {
    let request = json!({ "model": asked.model, "prompt": "1", "max_tokens": 1 }).to_string();
    let answer = exchange(asked.port, Method::POST, "/v1/completions", Some(request), deadline).await;
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

/// `None` when the engine has no readable `/metrics`.
async fn work(port: u16, deadline: Duration) -> Option<Work> {
    let (status, body) = exchange(port, Method::GET, "/metrics", None, deadline).await.ok()?;
    if status != 200 {
        return None;
    }
    parse(std::str::from_utf8(&body).ok()?)
}

/// Reads Prometheus's text format; a family with several label sets (engines) is summed up. `None` without vLLM's
/// gauges.
fn parse(page: &str) -> Option<Work> {
    let sum = |name: &str| {
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.as_bytes().first()? {
                b'{' => rest.rsplit_once('}')?.1,
                b' ' => rest,
                _ => return None,
            };
            value.split_whitespace().next()?.parse::<f64>().ok()
        });
        // Counters are whole numbers below 2^53.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value)).map(|sum| sum as u64)
    };
    Some(Work {
        running: sum("vllm:num_requests_running")?,
        waiting: sum("vllm:num_requests_waiting")?,
        iterations: sum("vllm:iteration_tokens_total_count"),
        generation_tokens: sum("vllm:generation_tokens_total"),
        prompt_tokens: sum("vllm:prompt_tokens_total"),
    })
}

async fn exchange(
    port: u16,
    method: Method,
    path: &str,
    body: Option<String>,
    deadline: Duration,
) -> Result<(u16, Bytes), String> {
    match timeout(deadline, exchange_now(port, method, path, body)).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", deadline.as_secs())),
    }
}

async fn exchange_now(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_all_engines_are_summed_and_other_families_are_left() {
        let page = "# HELP vllm:num_requests_running x\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a}b\"} 2.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a\"} 1.0\n\
            vllm:num_requests_waiting{engine=\"0\"} 0.0\n\
            vllm:iteration_tokens_total_bucket{le=\"1.0\"} 9.0\n\
            vllm:iteration_tokens_total_count{engine=\"0\"} 41.0\n\
            vllm:generation_tokens_total{engine=\"0\"} 1.2e+03\n";
        let work = parse(page).unwrap();
        assert_eq!((work.running, work.waiting), (3, 0));
        assert_eq!(
            (work.iterations, work.generation_tokens, work.prompt_tokens),
            (Some(41), Some(1200), None)
        );
        assert_eq!(parse("process_cpu_seconds_total 3\n"), None);
    }
}
