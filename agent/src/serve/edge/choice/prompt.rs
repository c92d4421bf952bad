//! What a request's body tells: the model, whether a stream is asked for, and how the prompt begins.
//!
//! One pass over the JSON, and another over one that was not read. Whatever is not looked for is skipped, and so is what follows the beginning. A body of a shape
//! that nobody expects has no beginning; to refuse it is the engine's business.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::affinity::hash;

/// Prompts that are alike in so many leading bytes belong together, and shorter ones do not matter: 1 KiB is about 250
/// tokens, which an engine reads in the time of one or two decoding steps. Not more, so that the turns of a talk keep
/// together whatever comes after; not less, so that talks behind one short system prompt do not.
const PREFIX_BYTES: usize = 1024;

/// What of a body matters here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in super::super) struct Prompt {
    pub(in super::super) model: Option<String>,
    /// The answer is to come as events.
    pub(in super::super) is_stream: bool,
    /// Hash of the first [`PREFIX_BYTES`] of `prompt` or of the texts of `messages`; `None` for shorter ones.
    pub(in super::super) prefix: Option<u64>,
}

impl Prompt {
    /// Empty where the body is no JSON object.
    pub(in super::super) fn read(body: &[u8]) -> Self {
        let read = |reads_text: bool| {
            let mut reader = serde_json::Deserializer::from_slice(body);
            reader.deserialize_map(Body { reads_text }).and_then(|prompt| reader.end().map(|()| prompt))
        };
        // Half of a surrogate pair is JSON and no text: engines take it, and it has no beginning here.
        read(true).or_else(|_| read(false)).unwrap_or_default()
    }
}

/// The whole body.
struct Body {
    reads_text: bool,
}

impl<'de> Visitor<'de> for Body {
    type Value = Prompt;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request's body")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Prompt, A::Error> {
        let mut prompt = Prompt::default();
        let mut beginning = Vec::new();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match key.0.as_ref() {
                "model" => prompt.model = map.next_value()?,
                "stream" => prompt.is_stream = map.next_value::<&RawValue>()?.get() == "true",
                "messages" | "prompt" if self.reads_text => map.next_value_seed(Text(&mut beginning))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        prompt.prefix = (beginning.len() >= PREFIX_BYTES).then(|| hash(&beginning[..PREFIX_BYTES]));
        Ok(prompt)
    }
}

/// A key without a copy of it where it holds no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Appends the texts of whatever value comes until the beginning is whole: a string, token ids, messages with their
/// `content`, parts with their `text`.
struct Text<'b>(&'b mut Vec<u8>);

impl Text<'_> {
    fn add(&mut self, bytes: &[u8]) {
        let room = PREFIX_BYTES - self.0.len().min(PREFIX_BYTES);
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn is_whole(&self) -> bool {
        self.0.len() >= PREFIX_BYTES
    }
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.is_whole() {
            return IgnoredAny::deserialize(deserializer).map(|_| ());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        self.add(text.as_bytes());
        Ok(())
    }

    fn visit_u64<E>(mut self, token: u64) -> Result<(), E> {
        // Token ids fit 32 bits.
        self.add(&token.to_le_bytes()[..4]);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Text(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match key.0.as_ref() {
                "content" | "text" => map.next_value_seed(Text(&mut *self.0))?,
                // Images and the like: what they hold is not the beginning's text.
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::super::super::resume::{Plan, plan};
    use super::*;

    fn prefix(body: &serde_json::Value) -> Option<u64> {
        Prompt::read(body.to_string().as_bytes()).prefix
    }

    #[test]
    fn the_model_is_found_and_what_is_no_request_names_none() {
        for (body, model) in [
            (r#"{"model":"tiny","messages":[{"role":"user","content":"a"}]}"#, Some("tiny")),
            (r#"{"messages":"odd","prompt":{"x":[1,-2,0.5,null,true]},"model":"tiny"}"#, Some("tiny")),
            (r#"{"\u006dodel":"ti\u006ey"}"#, Some("tiny")),
            (r#"{"model":"tiny","prompt":"\ud800"}"#, Some("tiny")),
            (r#"{"model":null}"#, None),
            (r#"{"model":7}"#, None),
            (r#"{"model":"tiny"} and more"#, None),
            (r#"["model"]"#, None),
            ("", None),
        ] {
            assert_eq!(Prompt::read(body.as_bytes()).model.as_deref(), model, "{body}");
        }
    }

    #[test]
    fn what_is_a_stream_here_is_one_for_the_rule_of_continuations_too() {
        for (body, is_stream) in [
            (r#"{"model":"tiny","stream":true}"#, true),
            (r#"{"model":"tiny", "str\u0065am" : true }"#, true),
            (r#"{"stream":false,"stream":true}"#, true),
            (r#"{"stream":true,"messages":[{"role":"user","content":"\udc00"}]}"#, true),
            (r#"{"stream":true,"stream":null}"#, false),
            (r#"{"stream":"true"}"#, false),
            (r#"{"stream":1}"#, false),
            (r#"{"metadata":{"stream":true}}"#, false),
            (r#"{"stream":true} and more"#, false),
            ("", false),
        ] {
            assert_eq!(Prompt::read(body.as_bytes()).is_stream, is_stream, "{body}");
            let plan = plan("/v1/chat/completions", &Bytes::from_static(body.as_bytes()));
            assert_eq!(!matches!(plan, Plan::Plain), is_stream, "{body}");
        }
    }

    #[test]
    fn prompts_belong_together_that_begin_alike_for_1_kib() {
        let long = "You are a careful assistant of the shop. ".repeat(40);
        let chat = |system: &str, turns: &[&str]| {
            let turns = turns.iter().map(|text| json!({"role": "user", "content": text}));
            let all: Vec<_> =
                std::iter::once(json!({"role": "system", "content": system})).chain(turns).collect();
            prefix(&json!({"model": "tiny", "messages": all, "stream": true}))
        };
        let one = chat(&long, &["Hello"]);
        assert!(one.is_some());
        assert_eq!(one, chat(&long, &["Bye", "and", "more"]));
        assert_ne!(one, chat(&format!("No. {long}"), &["Hello"]));
        assert_eq!(chat("short", &["Hello"]), None);
        assert_eq!(
            chat("short", &[&long]),
            chat("short", &[&long, "next turn"]),
            "a talk keeps its beginning"
        );
        let parts = json!([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "text", "text": long},
        ]}]);
        assert_eq!(prefix(&json!({"messages": parts})), prefix(&json!({"prompt": long})), "only text counts");
    }

    #[test]
    fn a_prompt_of_token_ids_has_a_beginning_too() {
        let tokens: Vec<u32> = (0..400).collect();
        let longer: Vec<u32> = (0..500).collect();
        assert!(prefix(&json!({"prompt": tokens})).is_some());
        assert_eq!(prefix(&json!({"prompt": tokens})), prefix(&json!({"prompt": longer})));
        assert_eq!(prefix(&json!({"prompt": tokens[..255]})), None);
    }

    #[test]
    fn escapes_and_long_tails_do_not_matter() {
        let text = "\"quoted\"\n\u{e4}".repeat(400);
        let plain = json!({"prompt": text}).to_string();
        let escaped = plain.replace('\u{e4}', "\\u00e4");
        assert_ne!(plain, escaped);
        assert_eq!(Prompt::read(plain.as_bytes()), Prompt::read(escaped.as_bytes()));
    }
}
