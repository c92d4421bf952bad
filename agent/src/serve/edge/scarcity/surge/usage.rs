//! How many tokens an answer took, read from it as it passes.
//!
//! An API says so in `usage`: in a whole answer always, in a stream only when asked, as one more event without a
//! choice. It is asked for in every stream; where the user did not ask, that event is taken out again, since a client
//! may not expect an event without a choice. An answer that ends early or says nothing is counted: an event of a stream
//! is a token or more, four bytes of text are about one.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;

/// Bytes of an answer, or of one event, that are looked at; longer ones pass unread and are counted by length.
const READ_BYTES_MAX: usize = 4 << 20;

/// Bytes of English text to a token, as OpenAI's guide has it.
pub(super) const BYTES_PER_TOKEN: u64 = 4;

/// Tokens of one request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) input: u64,
    pub(super) output: u64,
    /// By the API's own word; counted here otherwise.
    pub(super) is_said: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    choices: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    usage: Option<Usage>,
}

/// One answer on its way through.
#[derive(Debug)]
pub(super) struct Reading {
    is_stream: bool,
    strips_usage: bool,
    unread: BytesMut,
    is_overlong: bool,
    byte_count: u64,
    event_count: u64,
    usage: Option<Usage>,
}

impl Reading {
    /// `strips_usage`: the event that only tells the usage is not for this client.
    pub(super) fn new(is_stream: bool, strips_usage: bool) -> Self {
        let unread = BytesMut::new();
        Self {
            is_stream,
            strips_usage,
            unread,
            is_overlong: false,
            byte_count: 0,
            event_count: 0,
            usage: None,
        }
    }

    /// Takes the next bytes of the answer and returns those that may go on.
    pub(super) fn take(&mut self, data: Bytes) -> Bytes {
        self.byte_count += data.len() as u64;
        if self.is_overlong {
            return data;
        }
        self.unread.extend_from_slice(&data);
        if !self.is_stream {
            // The client has it at once; the copy is read at the end.
            self.is_overlong = self.unread.len() > READ_BYTES_MAX;
            return data;
        }
        let mut passing = BytesMut::new();
        while let Some(end) = end_of_event(&self.unread) {
            let event = self.unread.split_to(end);
            if self.is_for_client(&event) {
                passing.extend_from_slice(&event);
            }
        }
        if self.unread.len() > READ_BYTES_MAX {
            self.is_overlong = true;
            passing.extend_from_slice(&self.unread.split());
        }
        passing.freeze()
    }

    /// The answer has ended. Returns what was held back of it.
    pub(super) fn end(&mut self) -> Bytes {
        let rest = self.unread.split().freeze();
        if self.is_stream {
            return rest;
        }
        if !self.is_overlong {
            self.usage = serde_json::from_slice::<Part>(&rest).ok().and_then(|part| part.usage);
        }
        Bytes::new()
    }

    /// What it took so far; `input_guess` counts for a prompt that was not counted by the API.
    pub(super) fn tokens(&self, input_guess: u64) -> Tokens {
        match self.usage {
            Some(Usage { prompt_tokens, completion_tokens }) => {
                Tokens { input: prompt_tokens, output: completion_tokens, is_said: true }
            }
            None => {
                let by_length = self.byte_count / BYTES_PER_TOKEN;
                let output = if self.is_stream && !self.is_overlong { self.event_count } else { by_length };
                Tokens { input: input_guess, output, is_said: false }
            }
        }
    }

    /// Reads one event; false for the one that only tells the usage to a client that did not ask.
    fn is_for_client(&mut self, event: &[u8]) -> bool {
        let text = String::from_utf8_lossy(event);
        let data: String = text.lines().filter_map(|line| line.strip_prefix("data:")).collect();
        let Ok(part) = serde_json::from_str::<Part>(data.trim()) else { return true };
        self.event_count += u64::from(!part.choices.is_empty());
        let Some(usage) = part.usage else { return true };
        self.usage = Some(usage);
        !(part.choices.is_empty() && self.strips_usage)
    }
}

/// Just after the blank line that ends the first event.
fn end_of_event(seen: &[u8]) -> Option<usize> {
    let ends = [&b"\n\n"[..], b"\r\n\r\n"];
    let end = |end: &[u8]| seen.windows(end.len()).position(|window| window == end).map(|at| at + end.len());
    ends.iter().filter_map(|one| end(one)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n";
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n";
    const DONE: &str = "data: [DONE]\n\n";

    /// Feeds `text` in pieces of `size` bytes.
    fn read(reading: &mut Reading, text: &str, size: usize) -> String {
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            out.extend_from_slice(&reading.take(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&reading.end());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_usage_of_a_stream_is_read_and_taken_out_where_nobody_asked_for_it() {
        let sent = format!("{CHUNK}{CHUNK}{USAGE}{DONE}");
        for size in [1, 7, 64, 1000] {
            for (strips_usage, received) in [(true, format!("{CHUNK}{CHUNK}{DONE}")), (false, sent.clone())] {
                let mut reading = Reading::new(true, strips_usage);
                assert_eq!(read(&mut reading, &sent, size), received);
                assert_eq!(reading.tokens(99), Tokens { input: 7, output: 2, is_said: true });
            }
        }
    }

    #[test]
    fn a_stream_that_ends_early_is_counted_by_its_events_and_loses_no_byte() {
        let mut reading = Reading::new(true, true);
        let sent = format!("{CHUNK}: keep-alive\n\n{CHUNK}{CHUNK}data: {{\"cho");
        assert_eq!(read(&mut reading, &sent, 5), sent);
        assert_eq!(reading.tokens(99), Tokens { input: 99, output: 3, is_said: false });
    }

    #[test]
    fn a_whole_answer_passes_as_it_comes_and_is_read_at_its_end() {
        let said = r#"{"choices":[{}],"usage":{"prompt_tokens":5,"completion_tokens":3}}"#;
        let embeddings = r#"{"data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}"#;
        for (sent, tokens) in [
            (said, Tokens { input: 5, output: 3, is_said: true }),
            (embeddings, Tokens { input: 8, output: 0, is_said: true }),
            (r#"{"choices":[]}  "#, Tokens { input: 99, output: 4, is_said: false }),
        ] {
            let mut reading = Reading::new(false, true);
            assert_eq!(read(&mut reading, sent, 10), sent);
            assert_eq!(reading.tokens(99), tokens);
        }
    }

    #[test]
    fn an_event_longer_than_the_bound_passes_unread() {
        let mut reading = Reading::new(true, true);
        let long = "x".repeat(READ_BYTES_MAX + 1);
        assert_eq!(read(&mut reading, &long, 1 << 20).len(), long.len());
        assert!(!reading.tokens(1).is_said);
    }
}
