//! Requests of users that are under way, as a node in this one's place would have to know them.
//!
//! Kept only where there is a store for checkpoints, and only as long as the request lasts.

mod again;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cic_common::route::Class;
use cic_common::time::{Clock, Mono};
use serde::{Deserialize, Serialize};

pub use again::{Answered, NotAnswered};

use super::request::Buffered;
use super::user_port::Upload;

/// Bodies of all requests of one checkpoint together; the rest is named without its body.
const BODIES_BYTES_MAX: usize = 16 << 20;

/// One request that was under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub request_id: String,
    /// By which its client can ask for the answer.
    pub idempotency_key: Option<String>,
    /// Name of the client's API key.
    pub client: Option<String>,
    pub model: String,
    pub path: String,
    pub class: Class,
    pub is_stream: bool,
    /// Since it came.
    pub for_ms: u64,
    /// As it was sent; `None` where there was no room, or where it is no text.
    pub body: Option<String>,
    /// Of a stream that can be continued: what its client has had so far, all told.
    pub tokens: Vec<u32>,
}

impl Unfinished {
    /// Whether running it again is of use: its client can ask for the answer, which a stream's cannot.
    #[must_use]
    pub fn can_be_rerun(&self) -> bool {
        !self.is_stream && self.idempotency_key.is_some() && self.body.is_some()
    }
}

/// The requests under way. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal {
    /// `None` where none is kept.
    lines: Option<Arc<Mutex<Lines>>>,
}

#[derive(Debug, Default)]
struct Lines {
    last: u64,
    open: BTreeMap<u64, Noted>,
}

#[derive(Debug)]
struct Noted {
    since: Mono,
    request_id: String,
    idempotency_key: Option<String>,
    client: Option<String>,
    model: String,
    path: String,
    class: Class,
    is_stream: bool,
    /// Counted among the bodies that are held.
    body: Upload,
    tokens: Vec<u32>,
}

/// One request's place, given up with it.
#[derive(Debug)]
pub(super) struct Line {
    lines: Arc<Mutex<Lines>>,
    number: u64,
}

impl Journal {
    pub(super) fn kept() -> Self {
        Self { lines: Some(Arc::default()) }
    }

    /// Notes a request for `model` that came at `since`.
    pub(super) fn note(&self, model: &str, request: &Buffered, since: Mono) -> Option<Line> {
        let lines = Arc::clone(self.lines.as_ref()?);
        let noted = Noted {
            since,
            request_id: request.request_id.to_str().unwrap_or_default().to_owned(),
            idempotency_key: request.idempotency_key().map(str::to_owned),
            client: request.visit.client().map(str::to_owned),
            model: model.to_owned(),
            path: request.path().to_owned(),
            class: request.class,
            is_stream: request.prompt().is_stream,
            body: request.upload().clone(),
            tokens: Vec::new(),
        };
        let mut open = locked(&lines);
        open.last += 1;
        let number = open.last;
        open.open.insert(number, noted);
        drop(open);
        Some(Line { lines, number })
    }

    /// Every request under way, oldest first.
    pub(super) fn unfinished(&self, clock: Clock) -> Vec<Unfinished> {
        let Some(lines) = &self.lines else { return Vec::new() };
        let now = clock.now();
        let mut room = BODIES_BYTES_MAX;
        let mut unfinished = |noted: &Noted| {
            let bytes = &noted.body.bytes;
            let fits = bytes.len() <= room;
            let body = std::str::from_utf8(bytes).ok().filter(|_| fits).map(str::to_owned);
            room -= body.as_ref().map_or(0, String::len);
            Unfinished {
                request_id: noted.request_id.clone(),
                idempotency_key: noted.idempotency_key.clone(),
                client: noted.client.clone(),
                model: noted.model.clone(),
                path: noted.path.clone(),
                class: noted.class,
                is_stream: noted.is_stream,
                for_ms: u64::try_from(now.since(noted.since).as_millis()).unwrap_or(u64::MAX),
                body,
                tokens: noted.tokens.clone(),
            }
        };
        locked(lines).open.values().map(&mut unfinished).collect()
    }
}

impl Line {
    /// The stream's tokens are `emitted` now.
    pub(super) fn has_emitted(&self, emitted: &[u32]) {
        if let Some(noted) = locked(&self.lines).open.get_mut(&self.number) {
            // Taken up again before its last tokens, a stream draws those anew.
            if !emitted.starts_with(&noted.tokens) {
                noted.tokens.clear();
            }
            noted.tokens.extend_from_slice(&emitted[noted.tokens.len()..]);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        locked(&self.lines).open.remove(&self.number);
    }
}

fn locked(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
