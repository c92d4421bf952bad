//! One answer in the making: waits for a slot, then emits token after token until a limit, a stop or a fault ends it.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use crate::engine::{Engine, Mode};
use crate::faults::{self, Due, StopWith};
use crate::request::Limits;
use crate::tokens::{self, Context, Decoder, Token};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FinishReason {
    Stop,
    Length,
    Abort,
    Error,
    Repetition,
}

impl FinishReason {
    pub(crate) const ALL: [Self; 5] = [Self::Stop, Self::Length, Self::Abort, Self::Error, Self::Repetition];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
            Self::Repetition => "repetition",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Finish {
    pub(crate) reason: FinishReason,
    /// The stop string or token that ended it, where one of the request's did.
    pub(crate) stop_reason: Value,
}

/// What one step adds to an answer.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) index: usize,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<Finish>,
}

#[derive(Debug)]
pub(crate) enum Step {
    Piece(Piece),
    CoreDied,
}

/// A whole answer, for requests that do not stream.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) index: usize,
    pub(crate) prompt: Vec<Token>,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Finish,
}

/// Dropping it aborts the request, as vLLM does when its client has gone.
#[derive(Debug)]
pub(crate) struct Generation {
    engine: Arc<Engine>,
    mode: watch::Receiver<Mode>,
    slot: Option<OwnedSemaphorePermit>,
    index: usize,
    prompt: Vec<Token>,
    limits: Limits,
    context: Context,
    decoder: Decoder,
    /// Text that may yet turn out to be the beginning of a stop string.
    held: String,
    token_count: usize,
    began_at: Instant,
    last_token_at: Instant,
    due_at: Instant,
    is_over: bool,
}

impl Generation {
    pub(crate) fn new(
        engine: Arc<Engine>,
        index: usize,
        prompt: Vec<Token>,
        choice: u32,
        limits: Limits,
    ) -> Self {
        engine.metrics().waiting += 1;
        let now = Instant::now();
        Self {
            mode: engine.watch_mode(),
            slot: None,
            index,
            context: Context::new(&prompt, choice),
            decoder: Decoder::default(),
            held: String::new(),
            token_count: 0,
            began_at: now,
            last_token_at: now,
            due_at: now,
            is_over: false,
            prompt,
            limits,
            engine,
        }
    }

    pub(crate) fn prompt(&self) -> &[Token] {
        &self.prompt
    }

    /// The next step, or `None` after the last. Cancel-safe: a token is counted only when it is returned.
    pub(crate) async fn next(&mut self) -> Option<Step> {
        while !self.is_over {
            let mode = *self.mode.borrow_and_update();
            match mode {
                Mode::Serving | Mode::Draining => {}
                Mode::Stalled | Mode::Stuck | Mode::Stopping(StopWith::Hang) => {
                    self.mode.changed().await.ok()?;
                    continue;
                }
                Mode::Stopping(StopWith::Abort) => {
                    let finish = Finish { reason: FinishReason::Abort, stop_reason: Value::Null };
                    return Some(Step::Piece(self.piece(Vec::new(), Some(finish))));
                }
                Mode::Stopping(StopWith::Error) | Mode::Dead => {
                    self.is_over = true;
                    return Some(Step::CoreDied);
                }
            }
            if self.slot.is_none() {
                tokio::select! {
                    // Cancel-safe: the request loses its place in the queue, which a change of mode has emptied anyway.
                    slot = self.engine.slots.clone().acquire_owned() => self.start(slot.ok()?),
                    // Cancel-safe: `changed` loses no change.
                    _ = self.mode.changed() => {}
                }
                continue;
            }
            tokio::select! {
                // Cancel-safe: `changed` loses no change.
                _ = self.mode.changed() => continue,
                // Cancel-safe: the moment is kept in `due_at`.
                () = sleep_until(self.due_at) => {}
            }
            match self.engine.options.faults.at_token(self.engine.count_token()) {
                Due::Send => return Some(Step::Piece(self.emit())),
                Due::Hang => self.engine.enter(Mode::Stalled),
                Due::Crash(crash) => {
                    faults::die(crash);
                    self.engine.enter(Mode::Dead);
                }
            }
        }
        None
    }

    /// Runs to the end; `None` if the core died on the way.
    pub(crate) async fn whole(mut self) -> Option<Answer> {
        let (mut text, mut tokens) = (String::new(), Vec::new());
        while let Some(step) = self.next().await {
            let Step::Piece(piece) = step else { return None };
            text.push_str(&piece.text);
            tokens.extend(piece.tokens);
            if let Some(finish) = piece.finish {
                return Some(Answer { index: self.index, prompt: self.prompt.clone(), text, tokens, finish });
            }
        }
        None
    }

    fn start(&mut self, slot: OwnedSemaphorePermit) {
        self.slot = Some(slot);
        let faults = &self.engine.options.faults;
        self.due_at = Instant::now() + faults.first_token_after.max(faults.token_delay);
        let mut metrics = self.engine.metrics();
        metrics.waiting -= 1;
        metrics.running += 1;
    }

    fn emit(&mut self) -> Piece {
        let token = self.choose();
        self.context.push(token);
        self.token_count += 1;
        self.observe();
        self.held.push_str(&self.decoder.push(token));
        let finish = self.finish_after(token);
        self.piece(vec![token], finish)
    }

    fn choose(&self) -> Token {
        let token = self.context.next();
        let goes_on = self.limits.ignores_end || self.token_count < self.limits.min_tokens;
        if token == tokens::END && goes_on { self.context.next_word() } else { token }
    }

    fn observe(&mut self) {
        let now = Instant::now();
        let mut metrics = self.engine.metrics();
        if self.token_count == 1 {
            metrics.first_token(now - self.began_at, self.prompt.len());
        } else {
            metrics.next_token(now - self.last_token_at);
        }
        drop(metrics);
        self.last_token_at = now;
        self.due_at = now + self.engine.options.faults.token_delay;
    }

    fn finish_after(&mut self, token: Token) -> Option<Finish> {
        let finish = |reason, stop_reason| Some(Finish { reason, stop_reason });
        if token == tokens::END && !self.limits.ignores_end {
            return finish(FinishReason::Stop, Value::Null);
        }
        if self.limits.stop_token_ids.contains(&token) {
            return finish(FinishReason::Stop, json!(token));
        }
        let found =
            self.limits.stop.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|at| (at, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            let stop_reason = json!(stop);
            self.held.truncate(at);
            return finish(FinishReason::Stop, stop_reason);
        }
        let room = self.engine.served.max_model_len - self.prompt.len();
        let limit = self.limits.max_tokens.map_or(room, |max_tokens| max_tokens.min(room));
        if self.token_count >= limit { finish(FinishReason::Length, Value::Null) } else { None }
    }

    fn piece(&mut self, tokens: Vec<Token>, finish: Option<Finish>) -> Piece {
        let keep_chars = match &finish {
            Some(finish) => {
                self.is_over = true;
                self.engine.metrics().finish(finish.reason, self.began_at.elapsed());
                0
            }
            None => {
                self.limits.stop.iter().map(|stop| stop.chars().count()).max().unwrap_or(0).saturating_sub(1)
            }
        };
        // Characters, not bytes: vLLM's text is Python's.
        let cut = match keep_chars.checked_sub(1) {
            None => self.held.len(),
            Some(before) => self.held.char_indices().rev().nth(before).map_or(0, |(at, _)| at),
        };
        let rest = self.held.split_off(cut);
        let text = std::mem::replace(&mut self.held, rest);
        Piece { index: self.index, text, tokens, finish }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let mut metrics = self.engine.metrics();
        if self.slot.is_some() {
            metrics.running -= 1;
            let held = if self.token_count == 0 { 0 } else { self.prompt.len() + self.token_count };
            metrics.release(held);
        } else {
            metrics.waiting -= 1;
        }
        if !self.is_over {
            metrics.finish(FinishReason::Abort, self.began_at.elapsed());
        }
    }
}
