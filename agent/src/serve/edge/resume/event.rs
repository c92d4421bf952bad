//! Server-sent events as vLLM streams them: cut out of the byte stream, and read without copying.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::serve::edge::pulse::PULSE;

/// Longest event looked at. The first one names every token of the prompt: 1 M tokens of 7 bytes each.
pub(in crate::serve::edge) const EVENT_BYTES_MAX: usize = 8 << 20;

/// Cuts a byte stream into whole events. An event that lies within one frame is not copied.
#[derive(Debug, Default)]
pub(in crate::serve::edge) struct Framer {
    rest: Bytes,
    /// Of `rest`, so much is known to hold no end of an event.
    scanned: usize,
}

impl Framer {
    /// Takes the next frame.
    pub(in crate::serve::edge) fn push(&mut self, frame: Bytes) {
        if self.rest.is_empty() {
            self.rest = frame;
            return;
        }
        let mut joined = BytesMut::with_capacity(self.rest.len() + frame.len());
        joined.put_slice(&self.rest);
        joined.put_slice(&frame);
        self.rest = joined.freeze();
    }

    /// The next whole event with the blank line that ends it.
    pub(in crate::serve::edge) fn next(&mut self) -> Option<Bytes> {
        while let Some(at) = self.rest[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let line_end = self.scanned + at;
            let end = match self.rest[line_end + 1..] {
                [b'\n', ..] => line_end + 2,
                [b'\r', b'\n', ..] => line_end + 3,
                [] | [b'\r'] => {
                    self.scanned = line_end;
                    return None;
                }
                _ => {
                    self.scanned = line_end + 1;
                    continue;
                }
            };
            self.scanned = 0;
            return Some(self.rest.split_to(end));
        }
        self.scanned = self.rest.len();
        None
    }

    /// Bytes of an event whose end has not come yet.
    pub(in crate::serve::edge) fn waiting_bytes(&self) -> usize {
        self.rest.len()
    }
}

/// What an event says.
#[derive(Debug)]
pub(in crate::serve::edge) enum Said<'a> {
    Chunk(Chunk<'a>),
    /// `data: [DONE]`: nothing follows. No proof of success: vLLM says it after an error too.
    Done,
    /// The replica's edge hands the stream over: go on elsewhere.
    Moved,
    /// The replica's edge lives, and its engine says nothing.
    Pulse,
    /// Another comment, or nothing that is known.
    Other,
}

/// The comment with which a draining node hands a stream over. Other readers of an event stream pass it over.
pub(in crate::serve::edge) const MOVED: &[u8] = b": cic-moved\n\n";

/// One chunk of an answer. Values stay as they stand in the event until somebody wants them.
#[derive(Debug, Deserialize)]
pub(in crate::serve::edge) struct Chunk<'a> {
    #[serde(borrow, default)]
    pub(super) id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) created: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    /// Of a chat; in its first chunk.
    #[serde(borrow, default)]
    prompt_token_ids: Option<&'a RawValue>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) system_fingerprint: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) stop_reason: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) token_ids: Option<&'a RawValue>,
    /// Of a completion; in its first chunk.
    #[serde(borrow, default)]
    prompt_token_ids: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

impl Delta<'_> {
    /// What it carries beside plain content, and what a continuation could therefore not go on with.
    pub(super) fn foreign(&self) -> Option<&'static str> {
        let is_there =
            |value: Option<&RawValue>| value.is_some_and(|raw| !matches!(raw.get(), "[]" | "\"\""));
        if is_there(self.tool_calls) {
            return Some("tool calls");
        }
        (is_there(self.reasoning) || is_there(self.reasoning_content)).then_some("reasoning")
    }
}

impl<'a> Choice<'a> {
    /// The JSON string with what it adds to the answer; `None` where that is nothing.
    pub(super) fn written(&self) -> Option<&'a RawValue> {
        let content = self.delta.as_ref().and_then(|delta| delta.content);
        self.text.or(content).filter(|text| text.get() != "\"\"")
    }
}

impl<'a> Chunk<'a> {
    /// Why the engine failed at this stream, if this chunk says so: an error of its own, or an end that is none.
    pub(in crate::serve::edge) fn failure(&self) -> Option<String> {
        if let Some(error) = self.error.filter(|_| !self.is_client_error()) {
            return Some(format!("engine failed: {}", error.get()));
        }
        let ended = self.choices().iter().find_map(|choice| choice.finish_reason)?;
        matches!(ended.get(), "\"abort\"" | "\"error\"")
            .then(|| format!("engine ended the request with {}", ended.get()))
    }

    /// Whether it says that the request itself is at fault.
    pub(in crate::serve::edge) fn is_client_error(&self) -> bool {
        #[derive(Deserialize)]
        struct Coded {
            code: Option<u16>,
        }
        let coded = self.error.and_then(|error| serde_json::from_str::<Coded>(error.get()).ok());
        coded.and_then(|coded| coded.code).is_some_and(|code| (400..500).contains(&code))
    }

    pub(super) fn choices(&self) -> &[Choice<'a>] {
        self.choices.as_deref().unwrap_or_default()
    }

    /// Whether it is the chunk with the usage, which follows the last of an answer. An engine that aborts a request
    /// before its first token sends this alone.
    pub(in crate::serve::edge) fn is_epilogue(&self) -> bool {
        self.usage.is_some() && self.choices.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether an answer is whole with it.
    pub(in crate::serve::edge) fn is_last(&self) -> bool {
        self.choices().iter().any(|choice| choice.finish_reason.is_some())
    }

    /// Whether it only opens an answer: a role, without text or tokens.
    pub(super) fn is_opening(&self) -> bool {
        let is_empty = |choice: &Choice<'_>| {
            choice.written().is_none() && choice.token_ids.is_none() && choice.finish_reason.is_none()
        };
        // The chunk with the usage has no choices, and is the last of an answer.
        !self.choices().is_empty() && self.choices().iter().all(is_empty)
    }

    pub(super) fn prompt_ids(&self) -> Option<&'a RawValue> {
        self.prompt_token_ids.or_else(|| self.choices().first()?.prompt_token_ids)
    }
}

/// Reads one whole event.
pub(in crate::serve::edge) fn read(event: &[u8]) -> Said<'_> {
    // It may come behind half an event, which no JSON of a whole one can look like.
    if event.ends_with(MOVED) {
        return Said::Moved;
    }
    if event == PULSE {
        return Said::Pulse;
    }
    let Some(data) = event.strip_prefix(b"data:") else { return Said::Other };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        return Said::Done;
    }
    serde_json::from_slice(data).map_or(Said::Other, Said::Chunk)
}

/// Where in `event` a value read from it stands.
fn place(event: &[u8], value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr() as usize - event.as_ptr() as usize;
    start..start + value.get().len()
}

/// Writes `event` with its token ids replaced by null: what vLLM sends to whoever did not ask for them.
pub(super) fn without_ids(event: &Bytes, chunk: &Chunk<'_>, out: &mut BytesMut) {
    let changes = id_places(event, chunk).map(|place| (place, "null")).collect();
    changed(event, changes, out);
}

/// Writes `event` as one of the answer that began with `id` and `created`.
pub(super) fn renamed(
    event: &Bytes,
    chunk: &Chunk<'_>,
    (id, created): (&str, &str),
    hides_ids: bool,
    out: &mut BytesMut,
) {
    let ids = id_places(event, chunk).filter(|_| hides_ids).map(|place| (place, "null"));
    let names = [(chunk.id, id), (chunk.created, created)];
    let names = names.into_iter().filter_map(|(value, name)| Some((place(event, value?), name)));
    changed(event, ids.chain(names).collect(), out);
}

fn id_places<'a>(event: &'a Bytes, chunk: &'a Chunk<'_>) -> impl Iterator<Item = Range<usize>> + 'a {
    let of_choices = chunk.choices().iter().flat_map(|choice| [choice.prompt_token_ids, choice.token_ids]);
    of_choices.chain([chunk.prompt_token_ids]).flatten().map(|value| place(event, value))
}

fn changed(event: &Bytes, mut changes: Vec<(Range<usize>, &str)>, out: &mut BytesMut) {
    changes.sort_unstable_by_key(|(place, _)| place.start);
    out.reserve(event.len());
    let mut written = 0;
    for (place, value) in changes {
        out.put_slice(&event[written..place.start]);
        out.put_slice(value.as_bytes());
        written = place.end;
    }
    out.put_slice(&event[written..]);
}

/// Appends the token ids of a JSON list; `None` when it is none.
pub(super) fn add_ids(list: &RawValue, into: &mut Vec<u32>) -> Option<usize> {
    let inner = list.get().strip_prefix('[')?.strip_suffix(']')?.trim();
    let before = into.len();
    if !inner.is_empty() {
        for id in inner.split(',') {
            into.push(id.trim().parse().ok()?);
        }
    }
    Some(into.len() - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_out_however_the_frames_fall() {
        let stream = b"data: {\"a\":1}\n\n: comment\n\ndata: x\r\n\r\ndata: [DONE]\n\nhalf";
        let whole = [&b"data: {\"a\":1}\n\n"[..], b": comment\n\n", b"data: x\r\n\r\n", b"data: [DONE]\n\n"];
        for frame_len in 1..=stream.len() {
            let mut framer = Framer::default();
            let mut events = Vec::new();
            for frame in stream.chunks(frame_len) {
                framer.push(Bytes::copy_from_slice(frame));
                events.extend(std::iter::from_fn(|| framer.next()));
            }
            assert_eq!(events, whole, "frames of {frame_len}");
            assert_eq!(framer.waiting_bytes(), 4);
        }
    }

    #[test]
    fn a_failure_is_an_error_or_an_end_that_is_none() {
        for (event, is_failure) in [
            (&br#"data: {"error":{"message":"EngineCore died"}}"#[..], true),
            (br#"data: {"choices":[{"delta":{},"finish_reason":"abort"}]}"#, true),
            (br#"data: {"choices":[{"text":"","finish_reason":"error"}]}"#, true),
            (br#"data: {"choices":[{"delta":{"content":"{\"error\""},"finish_reason":null}]}"#, false),
            (br#"data: {"choices":[{"text":"a","finish_reason":"stop"}]}"#, false),
            (br#"data: {"error":null,"choices":[]}"#, false),
            (br#"data: {"error":{"message":"too long","code":400}}"#, false),
            (br#"data: {"error":{"message":"died","code":500}}"#, true),
        ] {
            let Said::Chunk(chunk) = read(event) else { panic!("{}", String::from_utf8_lossy(event)) };
            assert_eq!(chunk.failure().is_some(), is_failure, "{}", String::from_utf8_lossy(event));
        }
        for event in [&b": keep-alive\n\n"[..], b"event: x\n\n", b"data: {\n\n"] {
            assert!(matches!(read(event), Said::Other));
        }
        assert!(matches!(read(b"data: [DONE]\n\n"), Said::Done));
        assert!(matches!(read(MOVED), Said::Moved));
        assert!(matches!(read(PULSE), Said::Pulse));
    }

    #[test]
    fn hidden_ids_leave_what_vllm_sends_to_whoever_did_not_ask() {
        for (with, without) in [
            (
                r#"data: {"id":"c","choices":[{"index":0,"text":"x","prompt_token_ids":[42,71],"token_ids":[90]}]}"#,
                r#"data: {"id":"c","choices":[{"index":0,"text":"x","prompt_token_ids":null,"token_ids":null}]}"#,
            ),
            (
                r#"data: {"choices":[{"index":0,"delta":{"content":"\"token_ids\":[1]"},"token_ids":[1, 2]}],"prompt_token_ids":[3]}"#,
                r#"data: {"choices":[{"index":0,"delta":{"content":"\"token_ids\":[1]"},"token_ids":null}],"prompt_token_ids":null}"#,
            ),
            (r#"data: {"choices":[],"usage":{}}"#, r#"data: {"choices":[],"usage":{}}"#),
        ] {
            let event = Bytes::from(format!("{with}\n\n"));
            let Said::Chunk(chunk) = read(&event) else { panic!("{with}") };
            let mut out = BytesMut::new();
            without_ids(&event, &chunk, &mut out);
            assert_eq!(out, format!("{without}\n\n"));
        }
    }

    #[test]
    fn ids_are_read_from_any_list_of_numbers_and_from_nothing_else() {
        for (text, ids) in
            [("[1, 2,3]", Some(vec![1, 2, 3])), ("[]", Some(Vec::new())), ("null", None), ("[-1]", None)]
        {
            let mut read = Vec::new();
            let raw: &RawValue = serde_json::from_str(text).unwrap();
            assert_eq!(add_ids(raw, &mut read).map(|_| read), ids, "{text}");
        }
    }
}
