//! One attempt at one replica, up to the moment its answer may go to the client.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::response::Parts;
use serde::Deserialize;
use tokio::time::timeout;

use super::answer::{PULSE_HEADER, REFUSED_HEADER, RETRY_AFTER_MAX, RETRY_AFTER_MIN, RETRY_AFTER_UNSAID};
use super::choice::{Choice, Load};
use super::connection::Inflow;
use super::errand::REQUEST_MAX;
use super::pool::{Pool, SendError, Upstream};
use super::pulse;
use super::request::Buffered;
use super::resume::{EVENT_BYTES_MAX, Framer, Said, read};

/// Answers up to this are read whole before the client has a byte, so that a replica that dies inside one is
/// hidden. The longest completions of a 128 k context are about 1 MiB of JSON; embeddings batches are longer.
const HELD_BYTES_MAX: usize = 4 << 20;

/// An answer that may go to the client.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) head: Parts,
    pub(super) frames: VecDeque<Frame<Bytes>>,
    /// What follows the frames; `None` when they are all.
    pub(super) rest: Option<Inflow>,
    /// Its stream has signs of life in it.
    pub(super) has_pulse: bool,
}

impl Held {
    /// What was held back, in one piece.
    pub(super) fn whole(&self) -> Bytes {
        let mut parts = self.frames.iter().filter_map(Frame::data_ref);
        match (parts.next(), parts.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => only.clone(),
            (Some(_), Some(_)) => {
                let parts: Vec<&[u8]> =
                    self.frames.iter().filter_map(Frame::data_ref).map(|part| &part[..]).collect();
                parts.concat().into()
            }
        }
    }
}

/// Why an attempt failed, with what that means for the next.
#[derive(Debug)]
pub(super) enum Failure {
    /// The node takes no requests now, as when it drains.
    Refused(String),
    /// The engine never had the request: it costs nothing to try elsewhere, or here again later.
    NotTaken(String),
    /// The same, since the engine has all it may have; it expects room after `retry_after`.
    Full { why: String, retry_after: Duration },
    /// The engine had it and failed, perhaps because of it. `answer` is what it said, if anything.
    Broken { why: String, answer: Option<Held> },
}

/// Sends `request` to `upstream`, which is called `host`, and holds the answer until it can be trusted. Whatever the
/// answer is, the load that it tells is noted with `choice`.
pub(super) async fn attempt(
    pool: &Pool,
    choice: &Choice,
    upstream: &Upstream,
    host: &HeaderValue,
    request: &Buffered,
) -> Result<Held, Failure> {
    let response = match pool.send(upstream, request.copy(host)).await {
        Ok(sent) => sent,
        Err(error) if error.is_unsent() => return Err(Failure::NotTaken(error.to_string())),
        Err(
            error @ (SendError::Broken(_)
            | SendError::Connect(_)
            | SendError::ConnectLate
            | SendError::NoIdentity),
        ) => {
            return Err(broken(error.to_string()));
        }
    };
    let (mut head, body) = response.into_parts();
    let is_refused = head.headers.contains_key(REFUSED_HEADER);
    let has_pulse = head.headers.remove(PULSE_HEADER).is_some() && matches!(upstream, Upstream::Peer { .. });
    match (Load::take(&mut head.headers), upstream) {
        // An API outside has no say in what nodes of ours carry.
        (None, _) | (Some(_), Upstream::Outside { .. }) => {}
        (Some(load), _) if is_refused => choice.loaded_without_us(upstream.node(), load),
        (Some(load), _) => choice.loaded(upstream.node(), load),
    }
    let status = head.status;
    if let Some(reason) = head.headers.get(REFUSED_HEADER) {
        let why = format!("refused: {}", String::from_utf8_lossy(reason.as_bytes()));
        let is_full = status == StatusCode::TOO_MANY_REQUESTS;
        let retry_after = retry_after_of(&head.headers);
        return Err(if is_full { Failure::Full { why, retry_after } } else { Failure::Refused(why) });
    }
    match status {
        // What vLLM says when its own queue is full (`--max-num-queued-reqs`).
        StatusCode::SERVICE_UNAVAILABLE => {
            let retry_after = retry_after_of(&head.headers);
            Err(Failure::Full { why: format!("answered {status}"), retry_after })
        }
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Err(Failure::NotTaken(format!("answered {status}")))
        }
        StatusCode::INTERNAL_SERVER_ERROR => {
            let answer = hold(head, body).await.ok();
            Err(Failure::Broken { why: format!("answered {status}"), answer })
        }
        StatusCode::OK if is_event_stream(&head.headers) => first_event(head, body, has_pulse).await,
        _ => {
            let held = hold(head, body).await?;
            match &held.rest {
                None if status == StatusCode::OK && was_aborted(&held) => {
                    Err(broken("engine aborted the request".to_owned()))
                }
                _ => Ok(held),
            }
        }
    }
}

/// When a replica expects room, as it says in whole seconds; bounded, since it comes from outside.
fn retry_after_of(headers: &HeaderMap) -> Duration {
    let said = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    said.map_or(RETRY_AFTER_UNSAID, Duration::from_secs).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
}

fn broken(why: String) -> Failure {
    Failure::Broken { why, answer: None }
}

pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let content = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content.is_some_and(|content| content.trim_start().starts_with("text/event-stream"))
}

/// Reads the body to its end, or up to the bound.
async fn hold(head: Parts, mut body: Inflow) -> Result<Held, Failure> {
    let mut frames = VecDeque::new();
    let mut length = 0;
    while length <= HELD_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => {
                length += frame.data_ref().map_or(0, Bytes::len);
                frames.push_back(frame);
            }
            Some(Err(error)) => return Err(broken(format!("answer broke off: {error}"))),
            None => return Ok(Held { head, frames, rest: None, has_pulse: false }),
        }
    }
    Ok(Held { head, frames, rest: Some(body), has_pulse: false })
}

/// Reads until the first event is whole, and refuses one that only says that the engine failed.
async fn first_event(head: Parts, mut body: Inflow, has_pulse: bool) -> Result<Held, Failure> {
    let mut frames = VecDeque::new();
    let mut framer = Framer::default();
    let within = if has_pulse { pulse::FIRST_WITHIN } else { REQUEST_MAX };
    'events: loop {
        // Cancel safe: what is given up closes its connection.
        let Ok(frame) = timeout(within, body.frame()).await else {
            return Err(broken(format!("sent nothing of its stream for {} s", within.as_secs())));
        };
        match frame {
            Some(Ok(frame)) => {
                framer.push(frame.data_ref().cloned().unwrap_or_default());
                frames.push_back(frame);
            }
            Some(Err(error)) => {
                return Err(broken(format!("stream broke off before its first event: {error}")));
            }
            None => return Err(broken("stream ended before its first event".to_owned())),
        }
        while let Some(event) = framer.next() {
            match read(&event) {
                // It says nothing of the engine. The reader of the frames passes it over as well.
                Said::Pulse => continue,
                Said::Moved => return Err(Failure::Refused("handed over at once".to_owned())),
                Said::Done => return Err(broken("stream ended before it began".to_owned())),
                Said::Chunk(chunk) => {
                    if let Some(why) = chunk.failure() {
                        return Err(broken(why));
                    }
                    if chunk.is_epilogue() {
                        return Err(broken("engine gave the request up before its first token".to_owned()));
                    }
                }
                Said::Other => {}
            }
            break 'events;
        }
        if framer.waiting_bytes() > EVENT_BYTES_MAX {
            break;
        }
    }
    if body.is_end_stream() {
        body.end();
        return Ok(Held { head, frames, rest: None, has_pulse });
    }
    Ok(Held { head, frames, rest: Some(body), has_pulse })
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    choices: Vec<Ending>,
}

#[derive(Deserialize)]
struct Ending {
    #[serde(default)]
    finish_reason: Option<String>,
}

fn is_aborted(answer: &Answer) -> bool {
    answer.choices.iter().any(|choice| choice.finish_reason.as_deref() == Some("abort"))
}

/// Whether a whole answer was cut short by an engine that stops. Looks closer only when the word is there.
fn was_aborted(held: &Held) -> bool {
    let whole = held.whole();
    memchr::memmem::find(&whole, b"\"abort\"").is_some()
        && serde_json::from_slice(&whole).is_ok_and(|answer| is_aborted(&answer))
}
