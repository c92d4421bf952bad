//! One request through the fleet's front door.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::super::client::Client;
use super::super::endpoint::Endpoint;
use super::super::failure::Failure;
use super::plan::Plan;

/// A tiny model answers in under a second; this is for a loaded machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Routes reach the gateway within a heartbeat of the last replica being ready.
const TRIES_MAX: u32 = 40;
const TRY_INTERVAL: Duration = Duration::from_millis(250);

const TOKENS_MAX: u32 = 32;

/// Asks `prompt` and returns the answer's text.
///
/// # Errors
/// The last refusal, when none of the tries was answered with a completion.
pub(super) async fn ask(plan: &Plan, prompt: &str) -> Result<String, Failure> {
    let client = Client::new(Endpoint::at(plan.edge));
    let body = json!({
        "model": plan.model_name,
        "messages": [{ "role": "user", "content": prompt }],
        "max_tokens": TOKENS_MAX,
        "temperature": 0,
    });
    let mut last = String::new();
    for _ in 0..TRIES_MAX {
        match client.send(Method::POST, "/v1/chat/completions", Some(&body), ANSWER_WITHIN).await {
            Ok((status, answer)) if status.is_success() => {
                let answer: Value = serde_json::from_slice(&answer)
                    .map_err(|error| Failure::new(format!("the edge answered no JSON: {error}")))?;
                let text = answer["choices"][0]["message"]["content"].as_str().map(str::to_owned);
                return text
                    .ok_or_else(|| Failure::new(format!("the edge answered no completion: {answer}")));
            }
            Ok((status, answer)) => last = format!("{status}: {}", String::from_utf8_lossy(&answer).trim()),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(TRY_INTERVAL).await;
    }
    Err(Failure::new(format!("no completion from http://{}: {last}", plan.edge)))
}
