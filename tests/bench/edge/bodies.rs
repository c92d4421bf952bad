//! Answers of the upstream in the shape of vLLM 0.32.0, made once.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

/// Tokens of an answer, and chunks with text of a stream.
pub(super) const TOKENS: u32 = 64;

/// What every stream ends with.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

const PROMPT_TOKENS: u32 = 16;

const CREATED: u64 = 1_764_000_000;

/// Which of OpenAI's two APIs is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Completions,
    Chat,
}

/// What a request asks for, as far as it changes the answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    pub(super) stream: bool,
    pub(super) return_token_ids: bool,
}

/// The answers of one API to one kind of request.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) whole: Bytes,
    /// One event each, `[DONE]` included.
    pub(super) events: Vec<Bytes>,
}

/// Every answer there is.
#[derive(Debug)]
pub(super) struct Bodies {
    completions: [Answers; 2],
    chat: [Answers; 2],
}

impl Bodies {
    pub(super) fn new(model: &str) -> Self {
        let both = |api| [false, true].map(|with_ids| Answers::new(api, model, with_ids));
        Self { completions: both(Api::Completions), chat: both(Api::Chat) }
    }

    pub(super) fn of(&self, api: Api, asked: &Asked) -> &Answers {
        let answers = match api {
            Api::Completions => &self.completions,
            Api::Chat => &self.chat,
        };
        &answers[usize::from(asked.return_token_ids)]
    }
}

impl Answers {
    fn new(api: Api, model: &str, with_ids: bool) -> Self {
        let writer = Writer { api, model, with_ids };
        let whole = Bytes::from(writer.whole().to_string());
        let events = (api == Api::Chat).then(|| writer.role()).into_iter();
        let events = events.chain((0..TOKENS).map(|number| writer.piece(number)));
        let events = events.map(|event| Bytes::from(format!("data: {event}\n\n")));
        Self { whole, events: events.chain([Bytes::from_static(DONE)]).collect() }
    }
}

struct Writer<'a> {
    api: Api,
    model: &'a str,
    with_ids: bool,
}

impl Writer<'_> {
    fn envelope(&self, chat: &str, choices: Value) -> Value {
        let (id, object) = match self.api {
            Api::Completions => ("cmpl-8f2c6d1e5b7a4093", "text_completion"),
            Api::Chat => ("chatcmpl-8f2c6d1e5b7a4093", chat),
        };
        json!({ "id": id, "object": object, "created": CREATED, "model": self.model, "choices": [choices] })
    }

    fn whole(&self) -> Value {
        let text: String = (0..TOKENS).map(word).collect();
        let ids = (0..TOKENS).map(token).collect();
        let mut choice = json!({
            "index": 0, "logprobs": null, "finish_reason": "length", "stop_reason": null,
            "token_ids": self.ids(ids),
        });
        match self.api {
            Api::Completions => {
                choice["text"] = json!(text);
                choice["prompt_token_ids"] = self.prompt_ids();
            }
            Api::Chat => choice["message"] = json!({ "role": "assistant", "content": text }),
        }
        let mut answer = self.envelope("chat.completion", choice);
        answer["usage"] = json!({
            "prompt_tokens": PROMPT_TOKENS, "completion_tokens": TOKENS, "total_tokens": PROMPT_TOKENS + TOKENS,
        });
        if self.api == Api::Chat {
            answer["prompt_token_ids"] = self.prompt_ids();
        }
        answer
    }

    /// A chat begins with a chunk that says the role, and the prompt where ids are asked for.
    fn role(&self) -> Value {
        let delta = json!({ "role": "assistant", "content": "" });
        let choice = json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": null });
        let mut chunk = self.envelope("chat.completion.chunk", choice);
        chunk["prompt_token_ids"] = self.prompt_ids();
        chunk
    }

    fn piece(&self, number: u32) -> Value {
        let finish = (number + 1 == TOKENS).then_some("length");
        let ids = self.ids(vec![token(number)]);
        let mut choice = json!({
            "index": 0, "logprobs": null, "finish_reason": finish, "stop_reason": null, "token_ids": ids,
        });
        match self.api {
            Api::Completions => {
                choice["text"] = json!(word(number));
                let is_first = number == 0;
                choice["prompt_token_ids"] = if is_first { self.prompt_ids() } else { Value::Null };
            }
            Api::Chat => choice["delta"] = json!({ "content": word(number) }),
        }
        self.envelope("chat.completion.chunk", choice)
    }

    fn prompt_ids(&self) -> Value {
        self.ids((0..PROMPT_TOKENS).map(|number| 900 + number).collect())
    }

    fn ids(&self, ids: Vec<u32>) -> Value {
        if self.with_ids { json!(ids) } else { Value::Null }
    }
}

fn word(number: u32) -> String {
    ["one", " token", " after", " another"][number as usize % 4].to_owned()
}

fn token(number: u32) -> u32 {
    1000 + number * 37
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(api: Api, return_token_ids: bool) -> Vec<Value> {
        let bodies = Bodies::new("tiny");
        let events = &bodies.of(api, &Asked { stream: true, return_token_ids }).events;
        assert_eq!(events.last().map(|event| &event[..]), Some(DONE));
        let data = |event: &Bytes| {
            let data = event.strip_prefix(b"data: ").and_then(|event| event.strip_suffix(b"\n\n"));
            serde_json::from_slice(data.expect("an event")).expect("JSON")
        };
        events[..events.len() - 1].iter().map(data).collect()
    }

    #[test]
    fn the_first_event_has_the_prompts_ids_and_each_other_its_own() {
        let completions = events(Api::Completions, true);
        assert_eq!(completions.len(), TOKENS as usize);
        assert_eq!(completions[0]["choices"][0]["prompt_token_ids"].as_array().map(Vec::len), Some(16));
        let chat = events(Api::Chat, true);
        assert_eq!(chat[0]["prompt_token_ids"].as_array().map(Vec::len), Some(16));
        for event in completions.iter().chain(&chat[1..]) {
            assert_eq!(event["choices"][0]["token_ids"].as_array().map(Vec::len), Some(1));
        }
        assert_eq!(chat.last().expect("events")["choices"][0]["finish_reason"], "length");
    }

    #[test]
    fn ids_are_told_only_when_asked_for() {
        for event in events(Api::Chat, false).iter().chain(&events(Api::Completions, false)) {
            assert!(event["choices"][0]["token_ids"].is_null() && event["prompt_token_ids"].is_null());
        }
    }
}
