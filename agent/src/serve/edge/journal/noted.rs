//! Where requests are noted while they last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cic_common::route::Class;
use cic_common::time::{Clock, Mono};

use super::Unfinished;
use crate::serve::edge::request::Buffered;
use crate::serve::edge::user_port::Upload;

/// Bodies of all requests of one checkpoint together; the rest is named without its body.
pub(super) const BODIES_BYTES_MAX: usize = 16 << 20;

/// Tokens of all streams of one checkpoint together, of which JSON makes ten megabytes at most.
pub(super) const TOKENS_MAX: usize = 1 << 20;

/// The requests that were under way at one moment, not yet written out.
#[derive(Debug)]
pub struct UnderWay {
    noted: Vec<Arc<Noted>>,
    at: Mono,
}

/// The requests under way. Clones share them.
#[derive(Debug, Clone, Default)]
pub(in crate::serve::edge) struct Journal {
    /// `None` where none is kept.
    lines: Option<Arc<Mutex<Lines>>>,
}

#[derive(Debug, Default)]
struct Lines {
    last: u64,
    open: BTreeMap<u64, Arc<Noted>>,
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
    is_json_post: bool,
    /// Counted among the bodies that are held.
    body: Upload,
    tokens: Arc<Mutex<Vec<u32>>>,
}

/// One request's place, given up with it.
#[derive(Debug)]
pub(in crate::serve::edge) struct Line {
    lines: Arc<Mutex<Lines>>,
    number: u64,
    tokens: Arc<Mutex<Vec<u32>>>,
}

impl Journal {
    pub(in crate::serve::edge) fn kept() -> Self {
        Self { lines: Some(Arc::default()) }
    }

    /// Notes a request for `model` that came at `since`.
    pub(in crate::serve::edge) fn note(&self, model: &str, request: &Buffered, since: Mono) -> Option<Line> {
        let lines = Arc::clone(self.lines.as_ref()?);
        let tokens = Arc::<Mutex<Vec<u32>>>::default();
        let noted = Noted {
            since,
            request_id: request.request_id.to_str().unwrap_or_default().to_owned(),
            idempotency_key: request.idempotency_key().map(str::to_owned),
            client: request.visit.client().map(str::to_owned),
            model: model.to_owned(),
            path: request.path_and_query().to_owned(),
            class: request.class,
            is_stream: request.prompt().is_stream,
            is_json_post: request.is_json_post(),
            body: request.upload().clone(),
            tokens: Arc::clone(&tokens),
        };
        let number = {
            let mut lines = locked(&lines);
            lines.last += 1;
            let number = lines.last;
            lines.open.insert(number, Arc::new(noted));
            number
        };
        Some(Line { lines, number, tokens })
    }

    /// Every request under way. Copies handles only.
    pub(in crate::serve::edge) fn under_way(&self, clock: Clock) -> UnderWay {
        let noted = self.lines.as_ref().map(|lines| locked(lines).open.values().cloned().collect());
        UnderWay { noted: noted.unwrap_or_default(), at: clock.now() }
    }
}

impl UnderWay {
    /// All of it, oldest first. Takes milliseconds where much is under way.
    #[must_use]
    pub fn written(self) -> Vec<Unfinished> {
        let (mut bytes_left, mut tokens_left) = (BODIES_BYTES_MAX, TOKENS_MAX);
        let mut written: Vec<Unfinished> =
            self.noted.iter().map(|noted| noted.without_body(self.at, &mut tokens_left)).collect();
        // What can be run again comes first; a stream's body is only for people.
        let is_named = |noted: &Noted| !noted.is_stream && noted.idempotency_key.is_some();
        for named in [true, false] {
            for (noted, unfinished) in self.noted.iter().zip(&mut written) {
                let bytes = &noted.body.bytes;
                if is_named(noted) == named && bytes.len() <= bytes_left {
                    unfinished.body = std::str::from_utf8(bytes).ok().map(str::to_owned);
                    bytes_left -= unfinished.body.as_ref().map_or(0, String::len);
                }
            }
        }
        written
    }
}

impl Noted {
    fn without_body(&self, now: Mono, tokens_left: &mut usize) -> Unfinished {
        let emitted = locked(&self.tokens);
        let tokens = if emitted.len() <= *tokens_left { emitted.clone() } else { Vec::new() };
        *tokens_left -= tokens.len();
        Unfinished {
            request_id: self.request_id.clone(),
            idempotency_key: self.idempotency_key.clone(),
            client: self.client.clone(),
            model: self.model.clone(),
            path: self.path.clone(),
            class: self.class,
            is_stream: self.is_stream,
            is_json_post: self.is_json_post,
            for_ms: u64::try_from(now.since(self.since).as_millis()).unwrap_or(u64::MAX),
            body: None,
            tokens,
        }
    }
}

impl Line {
    /// The stream's tokens are `emitted` now, those that are noted among them.
    pub(in crate::serve::edge) fn has_emitted(&self, emitted: &[u32]) {
        let mut tokens = locked(&self.tokens);
        if let Some(new) = emitted.get(tokens.len()..) {
            tokens.extend_from_slice(new);
        }
    }

    /// The stream's tokens are `emitted` now, whatever was noted.
    pub(in crate::serve::edge) fn has_emitted_only(&self, emitted: &[u32]) {
        let mut tokens = locked(&self.tokens);
        tokens.clear();
        tokens.extend_from_slice(emitted);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        locked(&self.lines).open.remove(&self.number);
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
