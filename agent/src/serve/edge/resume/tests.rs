//! A stream cut after each of its events and continued: its client must see what an uninterrupted one shows.
//!
//! The engine here writes a fixed answer in vLLM's chunks, with tokens that split characters, events that carry
//! several tokens, and stop strings held back as vLLM holds them.

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use super::keeper::{Heard, Keeper, Seam};
use super::room::Rooms;
use super::rule::{Plan, plan};

/// Token `100 + i` is `TOKENS[i]`; some are parts of a character.
const TOKENS: [&[u8]; 12] =
    [b"Hel", b"lo", b" w\xc3", b"\xb6", b"rld", b" \xe2\x82", b"\xac", b" E", b"N", b"D", b" more", b"."];

const PROMPT: [u32; 3] = [1, 2, 3];

/// Writes the rest of the answer after `emitted` tokens, `merged` of them an event, as vLLM would.
fn engine(body: &Value, is_chat: bool, merged: usize, id: &str) -> Vec<Bytes> {
    let emitted = body["prompt"].as_array().map_or(0, |prompt| prompt.len() - PROMPT.len());
    let stops: Vec<&str> =
        body["stop"].as_array().map_or(Vec::new(), |stops| stops.iter().filter_map(Value::as_str).collect());
    let hold = stops.iter().map(|stop| stop.chars().count()).max().unwrap_or(1) - 1;
    let tokens_max = body["max_tokens"].as_u64().map_or(usize::MAX, |count| count as usize);
    let mut events = Vec::new();
    let event = |value: Value| Bytes::from(format!("data: {value}\n\n"));
    if is_chat {
        events.push(event(json!({"id": id, "created": 5, "model": "m", "prompt_token_ids": PROMPT,
            "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]})));
    }
    let (mut bytes, mut text, mut sent, mut token_count) = (Vec::new(), String::new(), 0, 0);
    let mut ids: Vec<usize> = (emitted..TOKENS.len()).take(tokens_max).collect();
    let mut is_first = true;
    while !ids.is_empty() {
        let now: Vec<usize> = ids.drain(..merged.min(ids.len())).collect();
        let (mut stop, mut count) = (None, 0);
        for id in &now {
            bytes.extend_from_slice(TOKENS[*id]);
            count += 1;
            if let Ok(whole) = std::str::from_utf8(&bytes) {
                text.push_str(whole);
                bytes.clear();
            }
            if let Some((at, found)) = stops.iter().filter_map(|stop| Some((text.find(stop)?, *stop))).min() {
                text.truncate(at);
                stop = Some(found);
                break;
            }
        }
        let is_last = ids.is_empty() || stop.is_some();
        let upto = if is_last { text.len() } else { cut_back(&text, hold) };
        let piece = text.get(sent..upto).unwrap_or_default().to_owned();
        sent = sent.max(upto);
        let finish =
            is_last.then(|| if stop.is_some() || tokens_max > TOKENS.len() { "stop" } else { "length" });
        let token_ids: Vec<usize> = now[..count].iter().map(|id| id + 100).collect();
        let mut choice = json!({"index": 0, "logprobs": null, "finish_reason": finish, "token_ids": token_ids,
            "stop_reason": stop});
        if is_chat {
            choice["delta"] = json!({"content": piece});
        } else {
            choice["text"] = json!(piece);
            choice["prompt_token_ids"] = if is_first { json!(PROMPT) } else { Value::Null };
        }
        (is_first, token_count) = (false, token_count + count);
        events.push(event(json!({"id": id, "created": 5, "model": "m", "choices": [choice]})));
        if is_last {
            break;
        }
    }
    if body["stream_options"]["include_usage"] == true {
        let prompt_tokens = PROMPT.len() + emitted;
        let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": token_count,
            "total_tokens": prompt_tokens + token_count});
        events.push(event(json!({"id": id, "created": 5, "model": "m", "choices": [], "usage": usage})));
    }
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    events
}

fn cut_back(text: &str, chars: usize) -> usize {
    text.char_indices()
        .rev()
        .nth(chars.wrapping_sub(1))
        .map_or(if chars == 0 { text.len() } else { 0 }, |(at, _)| at)
}

fn decode(ids: &[u32]) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| TOKENS[*id as usize - 100]).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a client makes of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    text: String,
    ids: Vec<u64>,
    finish: Option<String>,
    stop_reason: Option<String>,
    usage: Option<(u64, u64)>,
    ids_of_answers: Vec<String>,
    done_count: u32,
}

fn see(out: &[u8]) -> Seen {
    let mut seen = Seen::default();
    for event in std::str::from_utf8(out).unwrap().split("\n\n").filter(|event| !event.is_empty()) {
        let data = event.strip_prefix("data: ").unwrap();
        if data == "[DONE]" {
            seen.done_count += 1;
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        let id = chunk["id"].as_str().unwrap().to_owned();
        if !seen.ids_of_answers.contains(&id) {
            seen.ids_of_answers.push(id);
        }
        if let Some(usage) = chunk["usage"].as_object() {
            seen.usage = Some((
                usage["prompt_tokens"].as_u64().unwrap(),
                usage["completion_tokens"].as_u64().unwrap(),
            ));
        }
        let choice = &chunk["choices"][0];
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        seen.text.push_str(text.unwrap_or_default());
        seen.ids.extend(choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64));
        seen.finish = seen.finish.or(choice["finish_reason"].as_str().map(str::to_owned));
        seen.stop_reason = seen.stop_reason.or(choice["stop_reason"].as_str().map(str::to_owned));
    }
    seen
}

/// A request, its first replica cut after `cuts[0]` events, the next after `cuts[1]`, and so on. One that is left for the
/// place of a stop string's end no more puts tokens together.
fn run(path: &str, fields: &Value, mut merged: usize, cuts: &[usize]) -> Result<Seen, String> {
    let mut body = json!({"model": "m", "stream": true, "temperature": 0, "prompt": "p", "max_tokens": 99});
    if path.contains("chat") {
        body["messages"] = json!([]);
        body.as_object_mut().unwrap().remove("prompt");
    }
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let Plan::Keep(terms) = plan(path, &Bytes::from(body.to_string())) else { panic!("{fields}") };
    let mut asked: Value = serde_json::from_slice(&terms.body).unwrap();
    asked.as_object_mut().unwrap().remove("prompt");
    let begun = asked.clone();
    let mut keeper = Keeper::new(*terms, None, Rooms::default().empty());
    let mut out = BytesMut::new();
    let mut is_chat = path.contains("chat");
    for (number, cut) in cuts.iter().copied().chain([usize::MAX; 2]).enumerate() {
        let events = engine(&asked, is_chat, merged, &format!("c{number}"));
        let mut is_over = false;
        for event in events.iter().take(cut) {
            match keeper.hear(event, &mut out) {
                Heard::Goes => {}
                Heard::Done | Heard::Over => is_over = true,
                Heard::Moved => {
                    merged = 1;
                    break;
                }
                other @ (Heard::Cut(_) | Heard::Unkept(_) | Heard::Refused(_)) => {
                    return Err(format!("{other:?}"));
                }
            }
            if is_over {
                break;
            }
        }
        if is_over {
            return Ok(see(&out));
        }
        if keeper.is_finished() {
            keeper.close(&mut out);
            return Ok(see(&out));
        }
        if keeper.is_fresh() || keeper.begins_anew() {
            (asked, is_chat) = (begun.clone(), path.contains("chat"));
            continue;
        }
        let seam = match keeper.seam() {
            Seam::At(seam) => seam,
            Seam::Within { clean, from, to } => (from + 1..=to)
                .rev()
                .find(|at| !decode(&keeper.emitted[clean..*at]).ends_with('\u{FFFD}'))
                .unwrap_or(from + 1),
        };
        let held = match keeper.held_chars() {
            0 => String::new(),
            _ => keeper.held_in(&decode(&keeper.emitted[..seam]))?,
        };
        let is_stop_engines = keeper.turn(seam, held)?;
        let Some(left) = keeper.tokens_left(seam).filter(|left| *left > 0) else {
            keeper.finish_by_length(&mut out);
            return Ok(see(&out));
        };
        asked = serde_json::from_slice(&keeper.terms.resumed(
            &keeper.prompt,
            &keeper.emitted,
            left,
            is_stop_engines,
        ))
        .unwrap();
        is_chat = false;
    }
    Err("never ended".to_owned())
}

#[test]
fn a_stream_cut_anywhere_and_more_than_once_shows_what_an_uninterrupted_one_shows() {
    let mut cut_count = 0;
    for path in ["/v1/completions", "/v1/chat/completions"] {
        for fields in [
            json!({}),
            json!({"stream_options": {"include_usage": true}}),
            json!({"max_tokens": 6}),
            json!({"stop": ["END"]}),
            json!({"stop": ["END", "ö"], "stream_options": {"include_usage": true}}),
            json!({"stop": ["END"], "return_token_ids": true}),
            json!({"stop": ["absent text"]}),
            json!({"return_token_ids": true}),
        ] {
            for merged in 1..=3 {
                let whole = run(path, &fields, merged, &[]).unwrap();
                let has_usage = fields["stream_options"]["include_usage"] == true;
                let count = if whole.stop_reason.is_some() { 4 } else { 12 };
                assert_eq!(whole.usage, has_usage.then_some((3, count)), "{path} {fields} {merged}");
                for first in 0..14 {
                    for second in [None, Some(1), Some(2), Some(4)] {
                        let cuts: Vec<usize> = [first].into_iter().chain(second).collect();
                        let mut seen = run(path, &fields, merged, &cuts)
                            .unwrap_or_else(|why| panic!("{path} {fields} {merged} {cuts:?}: {why}"));
                        assert_eq!(seen.ids_of_answers.len(), 1, "{path} {fields} {merged} {cuts:?}");
                        // A replica that was lost before its first event told its name to nobody.
                        seen.ids_of_answers.clone_from(&whole.ids_of_answers);
                        assert_eq!(seen, whole, "{path} {fields} {merged} {cuts:?}");
                        cut_count += 1;
                    }
                }
            }
        }
    }
    assert!(cut_count > 2000, "{cut_count}");
}

#[test]
fn a_sampled_stream_whose_client_saw_ids_without_text_is_refused() {
    let fields = json!({"temperature": 0.7, "return_token_ids": true});
    // " w\xc3" has half a character: its id is out, its text is not.
    let error = run("/v1/completions", &fields, 1, &[3]).unwrap_err();
    assert!(error.contains("no text yet"), "{error}");
    assert!(run("/v1/completions", &fields, 1, &[2]).is_ok());
    assert!(run("/v1/completions", &json!({"temperature": 0.7}), 1, &[3]).is_ok());
}

#[test]
fn a_failure_in_the_stream_is_a_cut_and_after_the_end_it_is_nothing() {
    let Plan::Keep(terms) = plan("/v1/completions", &Bytes::from_static(br#"{"stream":true,"prompt":"p"}"#))
    else {
        panic!("kept")
    };
    let mut keeper = Keeper::new(*terms, None, Rooms::default().empty());
    let mut out = BytesMut::new();
    let chunk = |finish: &str, text: &str, prompt: &str| {
        Bytes::from(format!(
            "data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"finish_reason\":{finish},\"prompt_token_ids\":{prompt},\"token_ids\":[7]}}]}}\n\n"
        ))
    };
    assert_eq!(keeper.hear(&chunk("null", "a", "[1]"), &mut out), Heard::Goes);
    for cut in [&b"data: {\"error\":{\"message\":\"died\"}}\n\n"[..], b"data: [DONE]\n\n"] {
        assert!(matches!(keeper.hear(&Bytes::copy_from_slice(cut), &mut out), Heard::Cut(_)));
    }
    assert_eq!(keeper.hear(&Bytes::from_static(b": cic-moved\n\n"), &mut out), Heard::Moved);
    assert!(matches!(keeper.hear(&chunk("\"abort\"", "", "null"), &mut out), Heard::Cut(_)));
    let before = out.len();
    assert_eq!(keeper.hear(&chunk("\"stop\"", "b", "null"), &mut out), Heard::Goes);
    assert!(out.len() > before);
    let late = Bytes::from_static(b"data: {\"error\":{\"message\":\"died\"}}\n\n");
    assert_eq!(keeper.hear(&late, &mut out), Heard::Over);
    assert_eq!(see(&out).done_count, 1);
}

#[test]
fn an_engine_that_tells_no_ids_or_more_than_text_is_not_kept() {
    for (chunk, named) in [
        (json!({"choices": [{"index": 0, "text": "a", "token_ids": null}]}), "no token ids"),
        (json!("text"), "not understood"),
        (
            json!({"prompt_token_ids": [1], "choices": [{"index": 1, "text": "a", "token_ids": [1]}]}),
            "several",
        ),
        (
            json!({"prompt_token_ids": [1], "choices": [{"index": 0, "delta": {"reasoning": "hm"}, "token_ids": [1]}]}),
            "reasoning",
        ),
        (
            json!({"prompt_token_ids": [1], "choices": [{"index": 0, "delta": {"tool_calls": [{}]}, "token_ids": [1]}]}),
            "tool calls",
        ),
    ] {
        let Plan::Keep(terms) =
            plan("/v1/completions", &Bytes::from_static(br#"{"stream":true,"prompt":"p"}"#))
        else {
            panic!("kept")
        };
        let mut keeper = Keeper::new(*terms, None, Rooms::default().empty());
        let mut out = BytesMut::new();
        let event = Bytes::from(format!("data: {chunk}\n\n"));
        match keeper.hear(&event, &mut out) {
            Heard::Unkept(why) => assert!(why.contains(named), "{why}"),
            other => panic!("{chunk}: {other:?}"),
        }
        assert!(!out.is_empty(), "the client has it all the same");
    }
}
