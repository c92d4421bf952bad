//! Which streams can be continued exactly on another replica, decided from the request alone.
//!
//! A cut stream goes on as a completion whose prompt is the tokens of the prompt and of the answer so far. That is
//! exact where every further token depends on those tokens only:
//!
//! | request | what becomes of a cut stream |
//! |---|---|
//! | temperature 0 | goes on, and its text is the uninterrupted one (as far as the engine repeats itself: float32) |
//! | sampled, no `seed` | goes on: what follows is drawn as it would have been, so the whole is one valid sample |
//! | sampled with `seed` | refused: the generator would begin anew |
//! | `n` > 1, several prompts, `echo`, `suffix`, beam search | refused |
//! | `logprobs` and the like | refused |
//! | `response_format`, `structured_outputs`, `tools` in use | refused: the grammar's or parser's state is lost |
//! | frequency or presence penalty, `bad_words` | refused: they count what was generated |
//! | images and the like in a chat | refused: their tokens do not say what they show |
//! | a field that is not known here | refused |

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The path of chats; the other one that is continued is [`COMPLETIONS`].
const CHATS: &str = "/v1/chat/completions";

/// Completions, and what every stream is continued by.
pub(in crate::serve::edge) const COMPLETIONS: &str = "/v1/completions";

/// vLLM's default of `max_tokens` for completions; a chat may fill the context.
const COMPLETION_TOKENS_DEFAULT: u32 = 16;

/// Longest stop string that is looked for across a cut, in characters.
const STOP_CHARS_MAX: usize = 1024;

/// How a request's stream is treated when it is cut.
#[derive(Debug)]
pub(in crate::serve::edge) enum Plan {
    /// No stream of an answer: re-run whole while nothing was sent, passed through otherwise.
    Plain,
    /// A stream that cannot be continued, and why: it ends in an error event.
    Watch(String),
    /// A stream that is continued.
    Keep(Box<Terms>),
}

/// What must be known of a request to continue its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::serve::edge) struct Terms {
    pub(super) is_chat: bool,
    /// Asks for token ids: the body for the first replica.
    pub(in crate::serve::edge) body: Bytes,
    /// What the user sent.
    asked: Bytes,
    pub(super) is_greedy: bool,
    /// `None`: as far as the context goes.
    pub(super) max_tokens: Option<u32>,
    min_tokens: u32,
    pub(super) stop: Vec<String>,
    pub(super) keeps_stop: bool,
    pub(super) with_usage: bool,
    pub(super) with_usage_always: bool,
    pub(super) with_ids: bool,
}

type Fields<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Decides what becomes of the stream that `body`, sent to `path`, asks for.
pub(in crate::serve::edge) fn plan(path: &str, body: &Bytes) -> Plan {
    if path != CHATS && path != COMPLETIONS {
        return Plan::Plain;
    }
    // What cannot be read is the engine's to refuse.
    let Ok(fields) = serde_json::from_slice::<Fields<'_>>(body) else { return Plan::Plain };
    if fields.get("stream").is_none_or(|value| value.get() != "true") {
        return Plan::Plain;
    }
    match Terms::read(path == CHATS, &fields, body) {
        Ok(terms) => Plan::Keep(Box::new(terms)),
        Err(why) => Plan::Watch(why),
    }
}

/// What a field means for a continuation.
enum Use {
    /// Holds for the rest as well.
    Carry,
    /// Has done its work: it shaped the prompt, or means nothing to the engine.
    Spent,
}

impl Terms {
    fn read(is_chat: bool, fields: &Fields<'_>, body: &Bytes) -> Result<Self, String> {
        let is_greedy =
            fields.get("temperature").and_then(|value| value.get().parse::<f64>().ok()) == Some(0.0);
        for (name, value) in fields {
            judge(name, value.get(), is_greedy, fields)?;
        }
        let stream_options: StreamOptions = field(fields, "stream_options")?.unwrap_or_default();
        let stop = match field(fields, "stop")? {
            None => Vec::new(),
            Some(OneOrMore::One(one)) => vec![one],
            Some(OneOrMore::More(more)) => more,
        };
        let stop: Vec<String> = stop.into_iter().filter(|stop| !stop.is_empty()).collect();
        if stop.iter().any(|stop| stop.chars().count() > STOP_CHARS_MAX) {
            return Err("a stop string is too long".to_owned());
        }
        let min_tokens = field(fields, "min_tokens")?.unwrap_or(0);
        if min_tokens > 0 && !stop.is_empty() {
            return Err("`min_tokens` together with `stop`".to_owned());
        }
        let asked_max = match field(fields, "max_completion_tokens")? {
            Some(max_tokens) if is_chat => Some(max_tokens),
            _ => field(fields, "max_tokens")?,
        };
        let with_ids = fields.get("return_token_ids").is_some_and(|value| value.get() == "true");
        Ok(Self {
            is_chat,
            body: if with_ids { body.clone() } else { asking_for_ids(fields, body) },
            asked: body.clone(),
            is_greedy,
            max_tokens: if is_chat { asked_max } else { asked_max.or(Some(COMPLETION_TOKENS_DEFAULT)) },
            min_tokens,
            stop,
            keeps_stop: fields.get("include_stop_str_in_output").is_some_and(|value| value.get() == "true"),
            with_usage: stream_options.include_usage.unwrap_or(false),
            with_usage_always: stream_options.include_usage == Some(true)
                && stream_options.continuous_usage_stats == Some(true),
            with_ids,
        })
    }

    /// What is kept of the request.
    pub(super) fn kept_bytes(&self) -> usize {
        self.asked.len() + self.body.len()
    }

    /// The body that has another replica go on after `prompt` and `emitted`, with at most `tokens_max` tokens.
    ///
    /// `with_stop` leaves looking for stop strings to the engine, which cannot see one that began before the cut.
    pub(super) fn resumed(&self, prompt: &[u32], emitted: &[u32], tokens_max: u32, with_stop: bool) -> Bytes {
        // It was read before and is the same.
        let fields: Fields<'_> = serde_json::from_slice(&self.asked).unwrap_or_default();
        let mut body = String::with_capacity(7 * (prompt.len() + emitted.len()) + 512);
        body.push_str(r#"{"stream":true,"return_token_ids":true,"prompt":["#);
        for (index, id) in prompt.iter().chain(emitted).enumerate() {
            if index > 0 {
                body.push(',');
            }
            body.push_str(&id.to_string());
        }
        body.push_str(&format!(r#"],"max_tokens":{tokens_max}"#));
        let min_tokens = self.min_tokens.saturating_sub(u32::try_from(emitted.len()).unwrap_or(u32::MAX));
        if min_tokens > 0 {
            body.push_str(&format!(r#","min_tokens":{min_tokens}"#));
        }
        for (name, value) in &fields {
            let is_carried = matches!(judge(name, value.get(), self.is_greedy, &fields), Ok(Use::Carry));
            if is_carried || (with_stop && name == "stop") {
                body.push_str(&format!(",\"{name}\":{}", value.get()));
            }
        }
        body.push('}');
        Bytes::from(body)
    }
}

#[derive(Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

fn field<'a, T: Deserialize<'a>>(fields: &Fields<'a>, name: &str) -> Result<Option<T>, String> {
    match fields.get(name) {
        None => Ok(None),
        Some(raw) => serde_json::from_str(raw.get()).map_err(|_| format!("`{name}` is not understood")),
    }
}

/// Each field of vLLM's two requests (0.32, `entrypoints/openai/*/protocol.py`); any other refuses.
fn judge(name: &str, value: &str, is_greedy: bool, fields: &Fields<'_>) -> Result<Use, String> {
    let only = |allowed: &[&str]| {
        if value == "null" || allowed.contains(&value) { Ok(Use::Spent) } else { Err(format!("`{name}`")) }
    };
    match name {
        "model"
        | "temperature"
        | "top_p"
        | "top_k"
        | "min_p"
        | "repetition_penalty"
        | "ignore_eos"
        | "stop_token_ids"
        | "skip_special_tokens"
        | "allowed_token_ids"
        | "logit_bias"
        | "cache_salt"
        | "priority"
        | "session_id"
        | "stream_interval"
        | "include_stop_str_in_output" => Ok(Use::Carry),
        // Read into the terms, and written anew.
        "stream"
        | "stream_options"
        | "max_tokens"
        | "max_completion_tokens"
        | "min_tokens"
        | "stop"
        | "return_token_ids" => Ok(Use::Spent),
        "add_special_tokens"
        | "add_generation_prompt"
        | "continue_final_message"
        | "documents"
        | "chat_template"
        | "chat_template_kwargs"
        | "reasoning_effort"
        | "verbosity"
        | "web_search_options"
        | "prompt_cache_retention"
        | "parallel_tool_calls"
        | "length_penalty"
        | "truncation_side"
        | "user"
        | "metadata"
        | "store"
        | "service_tier"
        | "safety_identifier"
        | "prompt_cache_key"
        | "request_id"
        | "return_tokens_as_token_ids"
        | "return_token_offsets" => Ok(Use::Spent),
        "seed" if is_greedy => Ok(Use::Spent),
        "seed" => only(&[]).map_err(|_| "`seed` with a temperature above 0".to_owned()),
        "n" | "best_of" => only(&["1"]),
        "frequency_penalty" | "presence_penalty" => match value.parse::<f64>() {
            Ok(0.0) => Ok(Use::Spent),
            _ => only(&[]),
        },
        "top_logprobs" => only(&["0"]),
        "logprobs" | "echo" | "use_beam_search" | "watermarking" => only(&["false"]),
        "spaces_between_special_tokens" | "include_reasoning" => only(&["true"]),
        "modalities" => only(&[r#"["text"]"#]),
        "bad_words" => only(&["[]"]),
        "prompt_logprobs"
        | "logprob_token_ids"
        | "suffix"
        | "truncate_prompt_tokens"
        | "prompt_embeds"
        | "structured_outputs"
        | "guided_json"
        | "guided_regex"
        | "guided_choice"
        | "guided_grammar"
        | "vllm_xargs"
        | "kv_transfer_params"
        | "ec_transfer_params"
        | "repetition_detection"
        | "thinking_token_budget" => only(&[]),
        "response_format" => {
            let kind: Option<Kind> = serde_json::from_str(value).unwrap_or(Some(Kind::default()));
            if kind.is_none_or(|kind| kind.kind == "text") { Ok(Use::Spent) } else { only(&[]) }
        }
        "tools" => {
            let is_unused = fields.get("tool_choice").is_some_and(|choice| choice.get() == "\"none\"");
            if is_unused { Ok(Use::Spent) } else { only(&["[]"]) }
        }
        "tool_choice" => only(&["\"none\"", "\"auto\""]),
        "messages" if is_text(value) => Ok(Use::Spent),
        "messages" => Err("a message that is more than text".to_owned()),
        "prompt" if is_one_prompt(value) => Ok(Use::Spent),
        "prompt" => Err("several prompts".to_owned()),
        // Asks for nothing.
        _ if value == "null" => Ok(Use::Spent),
        _ => Err(format!("`{name}`, which is not known here")),
    }
}

#[derive(Default, Deserialize)]
struct Kind {
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

fn is_text(messages: &str) -> bool {
    let is_text = |message: &Message<'_>| {
        message.content.is_none_or(|content| {
            let parts = serde_json::from_str::<Vec<Kind>>(content.get());
            content.get().starts_with('"')
                || parts.is_ok_and(|parts| parts.iter().all(|part| part.kind == "text"))
        })
    };
    serde_json::from_str::<Vec<Message<'_>>>(messages).is_ok_and(|messages| messages.iter().all(is_text))
}

fn is_one_prompt(prompt: &str) -> bool {
    if prompt.starts_with('"') {
        return true;
    }
    let Ok(parts) = serde_json::from_str::<Vec<&RawValue>>(prompt) else { return false };
    let is_list_of_prompts = parts.first().is_some_and(|part| part.get().starts_with(['"', '[']));
    !is_list_of_prompts || parts.len() == 1
}

/// `body` with the wish for token ids in it.
fn asking_for_ids(fields: &Fields<'_>, body: &Bytes) -> Bytes {
    let mut asking = Vec::with_capacity(body.len() + 32);
    asking.extend_from_slice(br#"{"return_token_ids":true"#);
    if fields.contains_key("return_token_ids") {
        for (name, value) in fields.iter().filter(|(name, _)| *name != "return_token_ids") {
            // Of all names, `judge` lets only plain ones through.
            asking.extend_from_slice(format!(",\"{name}\":{}", value.get()).as_bytes());
        }
        asking.push(b'}');
    } else {
        // It was read as an object that has at least `stream` in it.
        let open = body.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
        asking.push(b',');
        asking.extend_from_slice(&body[open..]);
    }
    asking.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(path: &str, fields: &Value) -> Plan {
        let mut body = json!({"model": "m", "stream": true});
        let both = if path == CHATS {
            json!({"messages": [{"role": "user", "content": "hi"}]})
        } else {
            json!({"prompt": "hi"})
        };
        for part in [&both, fields] {
            body.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        }
        plan(path, &Bytes::from(body.to_string()))
    }

    fn terms(path: &str, fields: &Value) -> Terms {
        match planned(path, fields) {
            Plan::Keep(terms) => *terms,
            other => panic!("{fields}: {other:?}"),
        }
    }

    #[test]
    fn only_streams_of_the_two_paths_are_looked_at() {
        for (path, fields) in [
            ("/v1/embeddings", json!({})),
            ("/v1/responses", json!({})),
            (COMPLETIONS, json!({"stream": false})),
            (CHATS, json!({"stream": null})),
        ] {
            assert!(matches!(planned(path, &fields), Plan::Plain), "{path} {fields}");
        }
        assert!(matches!(plan(CHATS, &Bytes::from_static(b"{not json")), Plan::Plain));
    }

    #[test]
    fn what_depends_on_the_tokens_alone_is_continued() {
        for fields in [
            json!({}),
            json!({"temperature": 0, "seed": 7}),
            json!({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": null}),
            json!({"n": 1, "logprobs": null, "stop": ["a", "bc"], "ignore_eos": true}),
            json!({"frequency_penalty": 0.0, "presence_penalty": 0, "repetition_penalty": 1.2}),
            json!({"response_format": {"type": "text"}, "tools": [], "user": "u"}),
            json!({"tools": [{"type": "function"}], "tool_choice": "none"}),
            json!({"functions": null, "modalities": ["text"], "include_reasoning": true}),
            json!({"logit_bias": {"5": -1}, "min_tokens": 3, "stream_options": {"include_usage": true}}),
        ] {
            assert!(matches!(planned(CHATS, &fields), Plan::Keep(_)), "{fields}");
            assert!(matches!(planned(COMPLETIONS, &fields), Plan::Keep(_)), "{fields}");
        }
        for prompt in [json!("text"), json!([1, 2, 3]), json!(["one"]), json!([[1, 2]])] {
            assert!(matches!(planned(COMPLETIONS, &json!({"prompt": prompt})), Plan::Keep(_)), "{prompt}");
        }
        let parts = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]});
        assert!(matches!(planned(CHATS, &parts), Plan::Keep(_)));
    }

    #[test]
    fn what_depends_on_more_is_refused_with_its_field() {
        for (fields, named) in [
            (json!({"seed": 7}), "seed"),
            (json!({"seed": 7, "temperature": 0.5}), "seed"),
            (json!({"n": 2}), "`n`"),
            (json!({"best_of": 3}), "best_of"),
            (json!({"logprobs": 0}), "logprobs"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"prompt_logprobs": 1}), "prompt_logprobs"),
            (json!({"echo": true}), "echo"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"structured_outputs": {"regex": "a"}}), "structured_outputs"),
            (json!({"guided_json": {}}), "guided_json"),
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"tools": [{}], "tool_choice": "auto"}), "tools"),
            (json!({"frequency_penalty": 0.5}), "frequency_penalty"),
            (json!({"presence_penalty": -1}), "presence_penalty"),
            (json!({"bad_words": ["x"]}), "bad_words"),
            (json!({"stop": ["x"], "min_tokens": 2}), "min_tokens"),
            (json!({"something_new": 1}), "something_new"),
            (json!({"include_reasoning": false}), "include_reasoning"),
            (json!({"max_tokens": "many"}), "max_tokens"),
        ] {
            match planned(COMPLETIONS, &fields) {
                Plan::Watch(why) => assert!(why.contains(named), "{fields}: {why}"),
                other => panic!("{fields}: {other:?}"),
            }
        }
        for prompt in [json!(["one", "two"]), json!([[1], [2]])] {
            assert!(matches!(planned(COMPLETIONS, &json!({"prompt": prompt})), Plan::Watch(_)), "{prompt}");
        }
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]});
        assert!(matches!(planned(CHATS, &image), Plan::Watch(_)));
    }

    #[test]
    fn the_first_replica_is_asked_for_ids_and_for_nothing_else() {
        let read = |body: &Bytes| serde_json::from_slice::<Value>(body).unwrap();
        for given in [json!({}), json!({"return_token_ids": false}), json!({"return_token_ids": true})] {
            let terms = terms(CHATS, &given);
            assert_eq!(terms.with_ids, given["return_token_ids"] == true);
            let (mut asked, mut sent) = (read(&terms.asked), read(&terms.body));
            assert_eq!(sent["return_token_ids"], true, "{given}");
            for body in [&mut asked, &mut sent] {
                body.as_object_mut().unwrap().remove("return_token_ids");
            }
            assert_eq!(asked, sent);
        }
    }

    #[test]
    fn the_rest_is_asked_for_with_what_still_holds() {
        let chat = terms(
            CHATS,
            &json!({"temperature": 0.5, "stop": ["END"], "max_tokens": 10, "user": "u", "stop_token_ids": [9],
                    "stream_options": {"include_usage": true}}),
        );
        assert_eq!((chat.max_tokens, chat.with_usage, chat.with_usage_always), (Some(10), true, false));
        let body: Value = serde_json::from_slice(&chat.resumed(&[1, 2], &[3], 9, false)).unwrap();
        let expected = json!({"model": "m", "prompt": [1, 2, 3], "max_tokens": 9, "temperature": 0.5, "stream": true,
            "return_token_ids": true, "stop_token_ids": [9]});
        assert_eq!(body, expected);
        let body: Value = serde_json::from_slice(&chat.resumed(&[1, 2], &[], 9, true)).unwrap();
        assert_eq!(body["stop"], json!(["END"]));
        let least = terms(COMPLETIONS, &json!({"min_tokens": 5}));
        assert_eq!(least.max_tokens, Some(16));
        let body: Value = serde_json::from_slice(&least.resumed(&[1], &[2, 3], 14, true)).unwrap();
        assert_eq!(body["min_tokens"], 3);
        assert_eq!(terms(CHATS, &json!({})).max_tokens, None);
        assert_eq!(terms(CHATS, &json!({"max_completion_tokens": 4, "max_tokens": 9})).max_tokens, Some(4));
    }
}
