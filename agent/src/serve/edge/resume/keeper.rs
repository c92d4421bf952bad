//! What is known of one stream: its tokens so far, and what its client has of them.
//!
//! ```text
//! first replica's events ──▶ hear ──▶ the same events, less the token ids ──▶ client
//!                             │ cut
//!                      seam: the last token of which the client has the whole text; later ones are generated anew
//!                             │
//! next replica's events ───▶ hear ──▶ events as the first replica would have sent them ──▶ client
//! ```
//! Pure: it is fed events and gives bytes. Who is asked next, and when, is `again.rs`.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::value::RawValue;

use super::event::{Choice, Chunk, Said, add_ids, read, renamed, without_ids};
use super::room::Room;
use super::rule::Terms;
use super::stops::{Stops, last_chars};

/// Tokens of prompt and answer together, beyond which a stream is not kept: the longest contexts there are.
const KEPT_TOKENS_MAX: usize = 1 << 20;

/// Times that a stream is taken up again because its stop string ended within several tokens of one event. An engine
/// that lags puts tokens together now and then; one that drafts tokens always does, and counts them all itself.
const RECOUNTS_MAX: u32 = 2;

/// Characters kept of what the client has, beyond those that a stop string needs: to recognise them in a decoded text.
const PROOF_CHARS: usize = 16;

/// Where a stream is taken up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seam {
    /// After so many emitted tokens.
    At(usize),
    /// After more than `from` and at most `to` tokens: they came in one event, and its last ones may be without text.
    /// `clean` tokens are certainly whole.
    Within { clean: usize, from: usize, to: usize },
}

/// What an event meant for the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Goes,
    /// That was the last of it; the replica ends its answer now.
    Done,
    /// The client has all it will get, and the replica may be left.
    Over,
    /// Its node hands the stream over.
    Moved,
    /// This replica will say nothing more that is of use.
    Cut(String),
    /// It goes on as it is, and could not be continued.
    Unkept(String),
    /// It cannot go on.
    Refused(String),
}

/// What the chunks of one answer repeat, as JSON.
#[derive(Debug, Clone)]
struct Envelope {
    id: String,
    created: String,
    model: String,
}

#[derive(Debug)]
enum Segment {
    /// The replica that began, or one that began anew since the client had no text; it looks for stop strings itself.
    First,
    /// `expected` are tokens the client has seen the ids of, to be generated anew.
    Again { expected: VecDeque<u32>, stops: Option<Stops> },
}

/// One stream of which the tokens are kept.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) terms: Terms,
    pub(super) prompt: Vec<u32>,
    pub(super) emitted: Vec<u32>,
    seam: Seam,
    envelope: Option<Envelope>,
    segment: Segment,
    /// The last characters that the client has; kept where there are stop strings.
    sent_tail: String,
    /// What the engine calls itself, as JSON. It says so at an answer's end only.
    fingerprint: Option<String>,
    is_finished: bool,
    is_usage_sent: bool,
    /// A replica began anew: its answer goes on under the first one's name.
    is_anew: bool,
    unkeepable: Option<String>,
    recount_count: u32,
    room: Room,
}

impl Keeper {
    /// `fingerprint` is what engines of this model called themselves lately.
    pub(super) fn new(terms: Terms, fingerprint: Option<String>, room: Room) -> Self {
        Self {
            terms,
            prompt: Vec::new(),
            emitted: Vec::new(),
            seam: Seam::At(0),
            envelope: None,
            segment: Segment::First,
            sent_tail: String::new(),
            fingerprint,
            is_finished: false,
            is_usage_sent: false,
            is_anew: false,
            unkeepable: None,
            recount_count: 0,
            room,
        }
    }

    /// Takes one whole event and writes to `out` what the client is to have of it.
    pub(super) fn hear(&mut self, event: &Bytes, out: &mut BytesMut) -> Heard {
        match read(event) {
            Said::Done if self.is_finished => {
                self.close(out);
                Heard::Done
            }
            Said::Done => Heard::Cut("stream ended before its answer was whole".to_owned()),
            Said::Moved => Heard::Moved,
            Said::Pulse => Heard::Goes,
            Said::Other if !matches!(self.segment, Segment::First) => Heard::Goes,
            Said::Other => {
                out.put_slice(event);
                let is_comment = event.starts_with(b":");
                if is_comment {
                    Heard::Goes
                } else {
                    Heard::Unkept("events that are not understood".to_owned())
                }
            }
            Said::Chunk(chunk) if chunk.is_client_error() => {
                out.put_slice(event);
                (self.is_finished, self.is_usage_sent) = (true, true);
                Heard::Goes
            }
            Said::Chunk(chunk) => match chunk.failure() {
                Some(why) if !self.is_finished => Heard::Cut(why),
                // The answer is whole; only its last formalities are missing.
                Some(_) => {
                    self.close(out);
                    Heard::Over
                }
                None if matches!(self.segment, Segment::First) => self.first(event, &chunk, out),
                None => self.again(&chunk, out),
            },
        }
    }

    fn first(&mut self, event: &Bytes, chunk: &Chunk<'_>, out: &mut BytesMut) -> Heard {
        if chunk.is_epilogue() && !self.is_finished {
            return Heard::Cut("engine gave the request up".to_owned());
        }
        let before = self.envelope.clone();
        let taken = self.take(chunk);
        match before.filter(|_| self.is_anew) {
            // Begun anew, and the client has that of the first time.
            Some(_) if chunk.is_opening() => {}
            Some(Envelope { id, created, .. }) => {
                renamed(event, chunk, (&id, &created), !self.terms.with_ids, out);
            }
            None if self.terms.with_ids => out.put_slice(event),
            None => without_ids(event, chunk, out),
        }
        self.is_usage_sent |= chunk.is_epilogue();
        match taken {
            Err(why) if !self.is_finished => Heard::Unkept(why),
            _ => Heard::Goes,
        }
    }

    /// Notes the tokens of a chunk and what text they came with.
    fn take(&mut self, chunk: &Chunk<'_>) -> Result<(), String> {
        if self.envelope.is_none() {
            let text =
                |raw: Option<&RawValue>| raw.map_or_else(|| "null".to_owned(), |raw| raw.get().to_owned());
            self.envelope =
                Some(Envelope { id: text(chunk.id), created: text(chunk.created), model: text(chunk.model) });
            let ids = chunk.prompt_ids().and_then(|ids| add_ids(ids, &mut self.prompt));
            ids.filter(|count| *count > 0).ok_or("the engine tells no token ids")?;
        }
        if let Some(fingerprint) = chunk.system_fingerprint {
            self.fingerprint = Some(fingerprint.get().to_owned());
        }
        let Some(choice) = chunk.choices().first() else { return Ok(()) };
        self.is_finished |= choice.finish_reason.is_some();
        if chunk.choices().len() > 1 || choice.index > 0 {
            return Err("several answers".to_owned());
        }
        if let Some(what) = choice.delta.as_ref().and_then(|delta| delta.foreign()) {
            return Err(what.to_owned());
        }
        let from = self.emitted.len();
        self.add_tokens(choice)?;
        self.advance(from, choice.written().is_some());
        if let Some(text) = choice.written().filter(|_| !self.terms.stop.is_empty()) {
            let text: String = serde_json::from_str(text.get()).unwrap_or_default();
            self.sent(&text);
        }
        Ok(())
    }

    fn add_tokens(&mut self, choice: &Choice<'_>) -> Result<(), String> {
        let added = choice.token_ids.and_then(|ids| add_ids(ids, &mut self.emitted)).unwrap_or(0);
        if added == 0 && choice.written().is_some() {
            return Err("the engine tells no token ids".to_owned());
        }
        if self.prompt.len() + self.emitted.len() > KEPT_TOKENS_MAX {
            return Err("it is too long".to_owned());
        }
        let bytes = 4 * (self.prompt.capacity() + self.emitted.capacity());
        if self.room.grow_to(bytes + self.terms.kept_bytes()) {
            Ok(())
        } else {
            Err("too much is kept".to_owned())
        }
    }

    /// An engine gives text once it is whole (`DecodeStream` of the tokenizers library), so that a token that came
    /// alone and with text leaves nothing behind.
    fn advance(&mut self, from: usize, has_text: bool) {
        let to = self.emitted.len();
        if !has_text || to == from {
            return;
        }
        let clean = match self.seam {
            Seam::At(clean) | Seam::Within { clean, .. } => clean,
        };
        self.seam = if to - from == 1 { Seam::At(to) } else { Seam::Within { clean, from, to } };
    }

    fn sent(&mut self, text: &str) {
        self.sent_tail.push_str(text);
        let keep = Stops::tail_chars(&self.terms.stop) + PROOF_CHARS;
        self.sent_tail = last_chars(&self.sent_tail, keep).to_owned();
    }

    fn again(&mut self, chunk: &Chunk<'_>, out: &mut BytesMut) -> Heard {
        if let Some(fingerprint) = chunk.system_fingerprint {
            self.fingerprint = Some(fingerprint.get().to_owned());
        }
        let Some(choice) = chunk.choices().first() else { return Heard::Goes };
        let from = self.emitted.len();
        if self.ends_within(choice) {
            self.recount_count += 1;
            // Taken up again before this event, it comes token by token, and so does the end of the stop string.
            return Heard::Moved;
        }
        // What it has goes on; another cut would be its last.
        self.unkeepable = self.add_tokens(choice).err().or(self.unkeepable.take());
        self.advance(from, choice.written().is_some());
        let mut text: String =
            choice.written().and_then(|text| serde_json::from_str(text.get()).ok()).unwrap_or_default();
        let mut finish = choice.finish_reason.map(|reason| (reason.get().to_owned(), choice.stop_reason));
        let Segment::Again { expected, stops } = &mut self.segment else { return Heard::Goes };
        let mut shown = from;
        while let (Some(id), Some(was)) = (self.emitted.get(shown), expected.front()) {
            if id != was {
                return Heard::Refused("the next replica goes on differently".to_owned());
            }
            expected.pop_front();
            shown += 1;
        }
        let stop_reason;
        if let Some(stops) = stops {
            let passed = stops.pass(&text);
            text = passed.text;
            if let Some(stop) = passed.found {
                stop_reason = RawValue::from_string(serde_json::json!(stop).to_string()).ok();
                finish = Some(("\"stop\"".to_owned(), stop_reason.as_deref()));
            } else if finish.is_some() {
                text.push_str(&stops.rest());
            }
        }
        let is_stopped = finish.is_some() && choice.finish_reason.is_none();
        self.is_finished |= finish.is_some();
        if !self.terms.stop.is_empty() {
            self.sent(&text);
        }
        let is_news =
            !text.is_empty() || finish.is_some() || (self.terms.with_ids && shown < self.emitted.len());
        if is_news {
            let finish = finish.as_ref().map(|(reason, stop_reason)| (reason.as_str(), *stop_reason));
            self.write(&text, shown, finish, out);
        }
        if is_stopped {
            self.close(out);
            return Heard::Over;
        }
        Heard::Goes
    }

    /// Whether a stop string that only we look for ends in this event of several tokens, so that nobody knows in which.
    fn ends_within(&self, choice: &Choice<'_>) -> bool {
        let Segment::Again { stops: Some(stops), .. } = &self.segment else { return false };
        let counts = self.terms.with_usage || self.terms.with_ids;
        if !counts || self.recount_count >= RECOUNTS_MAX {
            return false;
        }
        let mut ids = Vec::new();
        let count = choice.token_ids.and_then(|raw| add_ids(raw, &mut ids)).unwrap_or(0);
        let text = choice.written().and_then(|text| serde_json::from_str::<String>(text.get()).ok());
        count > 1 && text.is_some_and(|text| stops.clone().pass(&text).found.is_some())
    }

    /// One chunk as the replica that began would have sent it.
    fn write(
        &self,
        text: &str,
        shown_from: usize,
        finish: Option<(&str, Option<&RawValue>)>,
        out: &mut BytesMut,
    ) {
        let text = serde_json::Value::from(text).to_string();
        let ids = match self.terms.with_ids {
            true => format!("{:?}", &self.emitted[shown_from.min(self.emitted.len())..]),
            false => "null".to_owned(),
        };
        let (reason, stop_reason) = finish.unwrap_or(("null", None));
        let stop_reason = stop_reason.map_or("null", RawValue::get);
        let choice = if self.terms.is_chat {
            let stop_reason = finish.map_or_else(String::new, |_| format!(r#","stop_reason":{stop_reason}"#));
            format!(
                r#"{{"index":0,"delta":{{"content":{text}}},"logprobs":null,"finish_reason":{reason}{stop_reason},"token_ids":{ids}}}"#
            )
        } else {
            format!(
                r#"{{"index":0,"text":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":{stop_reason},"prompt_token_ids":null,"token_ids":{ids}}}"#
            )
        };
        let mut rest = String::new();
        if self.terms.with_usage_always {
            rest.push_str(&format!(r#","usage":{}"#, self.usage()));
        }
        if finish.is_some() && !self.terms.with_usage {
            rest.push_str(&self.fingerprint());
        }
        self.write_chunk(&choice, &rest, out);
    }

    fn write_chunk(&self, choices: &str, rest: &str, out: &mut BytesMut) {
        let object = if self.terms.is_chat { "chat.completion.chunk" } else { "text_completion" };
        let null = || "null".to_owned();
        let Envelope { id, created, model } =
            self.envelope.clone().unwrap_or_else(|| Envelope { id: null(), created: null(), model: null() });
        let chunk = format!(
            "data: {{\"id\":{id},\"object\":\"{object}\",\"created\":{created},\"model\":{model},\"choices\":[{choices}]{rest}}}\n\n"
        );
        out.put_slice(chunk.as_bytes());
    }

    fn usage(&self) -> String {
        let (prompt, answer) = (self.prompt.len(), self.emitted.len());
        format!(
            r#"{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{answer}}}"#,
            prompt + answer
        )
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.as_ref().map_or_else(String::new, |text| format!(r#","system_fingerprint":{text}"#))
    }

    /// What the engine calls itself, once it has said so.
    pub(super) fn told_fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// What follows the last chunk with text.
    pub(super) fn close(&mut self, out: &mut BytesMut) {
        if self.terms.with_usage && !std::mem::replace(&mut self.is_usage_sent, true) {
            self.write_chunk("", &format!(r#","usage":{}{}"#, self.usage(), self.fingerprint()), out);
        }
        out.put_slice(b"data: [DONE]\n\n");
    }

    /// Whether the client has the whole answer, less its last formalities.
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Whether the client has nothing but comments: such a stream is begun anew.
    pub(super) fn is_fresh(&self) -> bool {
        self.envelope.is_none()
    }

    /// Why it could not be continued once more, if it could not.
    pub(super) fn unkeepable(&self) -> Option<&str> {
        self.unkeepable.as_deref()
    }

    /// Whether the client has no text of a chat yet, nor ids: the same request can begin anew, which keeps whatever the
    /// engine makes of the beginning of an answer.
    pub(super) fn begins_anew(&mut self) -> bool {
        let has_nothing = matches!(self.segment, Segment::First) && self.seam == Seam::At(0);
        let can = has_nothing && self.terms.is_chat && (self.emitted.is_empty() || !self.terms.with_ids);
        if can {
            self.emitted.clear();
            self.is_anew = true;
        }
        can
    }

    pub(super) fn seam(&self) -> Seam {
        self.seam
    }

    /// Tokens that a continuation may still generate; `None` as far as the context goes.
    pub(super) fn tokens_left(&self, seam: usize) -> Option<u32> {
        let used = u32::try_from(seam).unwrap_or(u32::MAX);
        self.terms.max_tokens.map(|max_tokens| max_tokens.saturating_sub(used))
    }

    /// Characters that the engine held back at `seam`, which have to be decoded from the tokens; 0 if none are wanted.
    pub(super) fn held_chars(&self) -> usize {
        match &self.segment {
            Segment::First | Segment::Again { stops: None, .. }
                if !self.sent_tail.is_empty() && !self.terms.keeps_stop =>
            {
                Stops::tail_chars(&self.terms.stop)
            }
            Segment::First | Segment::Again { .. } => 0,
        }
    }

    /// The text of the last tokens before the seam, as an engine decodes them, turned into what was held back.
    ///
    /// # Errors
    /// When it does not end as the client's text does: a special token is among them, say.
    pub(super) fn held_in(&self, decoded: &str) -> Result<String, String> {
        let held = last_chars(decoded, self.held_chars());
        let before = &decoded[..decoded.len() - held.len()];
        // A slice of tokens may begin within a character.
        let proof = last_chars(before, PROOF_CHARS.min(before.chars().count().saturating_sub(2)));
        if self.sent_tail.ends_with(proof) && held.chars().count() == self.held_chars() {
            return Ok(held.to_owned());
        }
        Err("its stop strings cannot be followed across the cut".to_owned())
    }

    /// Goes back to the seam and gets ready for the events of the next replica. `held` is what the last one held back
    /// for stop strings. Tells whether the next one is to look for stop strings itself.
    ///
    /// # Errors
    /// When the client has seen tokens that would be drawn anew.
    pub(super) fn turn(&mut self, seam: usize, held: String) -> Result<bool, String> {
        let mut expected: VecDeque<u32> = self.emitted.split_off(seam.min(self.emitted.len())).into();
        self.seam = Seam::At(self.emitted.len());
        let (unseen, stops) = match std::mem::replace(&mut self.segment, Segment::First) {
            Segment::Again { expected, stops } => (expected, stops),
            Segment::First => (VecDeque::new(), None),
        };
        expected.extend(unseen);
        if !self.terms.with_ids {
            expected.clear();
        }
        if !expected.is_empty() && !self.terms.is_greedy {
            return Err("tokens of it that were sent have no text yet".to_owned());
        }
        let stop = &self.terms.stop;
        // An engine that begins anew sees every stop string whole.
        let is_begun = !stop.is_empty() && !self.sent_tail.is_empty();
        let stops = stops.or_else(|| {
            let tail = match self.terms.keeps_stop {
                true => last_chars(&self.sent_tail, Stops::tail_chars(stop)).to_owned(),
                false => held,
            };
            is_begun.then(|| Stops::new(stop.clone(), self.terms.keeps_stop, tail))
        });
        let is_engines = stops.is_none();
        self.segment = Segment::Again { expected, stops };
        Ok(is_engines)
    }

    /// Ends an answer of which no token is left to generate.
    pub(super) fn finish_by_length(&mut self, out: &mut BytesMut) {
        let rest = match &mut self.segment {
            Segment::Again { stops: Some(stops), .. } => stops.rest(),
            Segment::Again { stops: None, .. } | Segment::First => String::new(),
        };
        self.is_finished = true;
        self.write(&rest, self.emitted.len(), Some(("\"length\"", None)), out);
        self.close(out);
    }
}
