//! A set of requests of every kind whose streams an edge has to continue: greedy, each with an answer of its own.

use serde_json::{Value, json};

use super::heard::Ask;

/// What people ask, so that prompts differ in words and not only in a number.
const SUBJECTS: [&str; 10] = [
    "the sea in the morning",
    "a robot who counted ships",
    "how a fleet survives",
    "a witness that is silent",
    "naïve cafés and 東京",
    "the capital of France",
    "eight legs",
    "a small bridge at night",
    "rain on the harbour",
    "wind, water and stone 😀",
];

/// Words that some answers run into and others do not: of the stand-in's vocabulary, and of the tiny Llama's.
const STOPS: [&str; 4] = [" harbour", " lamp", "robot", "ing "];

/// The first `count` requests of the set, for `model`, of at most `tokens_max` tokens each. Chats and completions by turns;
/// every third with usage, every fourth with token ids, every fifth with stop strings, every seventh ends by itself where
/// the model wants to.
#[must_use]
pub fn asks(model: &str, count: usize, tokens_max: usize) -> Vec<Ask> {
    (0..count).map(|number| ask(model, number, tokens_max)).collect()
}

fn ask(model: &str, number: usize, tokens_max: usize) -> Ask {
    let about = format!("Tell me about {}, number {number}.", SUBJECTS[number % SUBJECTS.len()]);
    // From half of the most to the most: streams that began together do not end together.
    let tokens = tokens_max / 2 + number * 37 % (tokens_max / 2 + 1);
    let mut body = json!({ "model": model, "temperature": 0, "stream": true });
    let path = if number.is_multiple_of(2) { "/v1/completions" } else { "/v1/chat/completions" };
    if number.is_multiple_of(2) {
        add(&mut body, json!({ "prompt": about, "max_tokens": tokens }));
    } else {
        let key = if number % 4 == 1 { "max_tokens" } else { "max_completion_tokens" };
        add(&mut body, json!({ "messages": messages(number, &about), key: tokens }));
    }
    if number.is_multiple_of(3) {
        add(&mut body, json!({ "stream_options": { "include_usage": true } }));
    }
    // Not in step with the turns of path, so that both paths have every kind.
    if number / 2 % 4 == 1 {
        add(&mut body, json!({ "return_token_ids": true }));
    }
    if number / 2 % 5 == 2 {
        add(&mut body, json!({ "stop": STOPS }));
    }
    if number / 2 % 7 != 3 {
        add(&mut body, json!({ "ignore_eos": true }));
    }
    Ask { path, body }
}

fn messages(number: usize, about: &str) -> Value {
    let system = json!({ "role": "system", "content": "You speak of ships." });
    let user = json!({ "role": "user", "content": about });
    let earlier =
        json!([{ "role": "user", "content": "Hello." }, { "role": "assistant", "content": "Hello!" }]);
    match number / 2 % 3 {
        0 => json!([user]),
        1 => json!([system, user]),
        _ => json!([system, earlier[0], earlier[1], user]),
    }
}

fn add(body: &mut Value, more: Value) {
    if let (Value::Object(body), Value::Object(more)) = (body, more) {
        body.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_requests_have_every_kind_on_both_paths() {
        let all = asks("tiny", 200, 100);
        for path in ["/v1/completions", "/v1/chat/completions"] {
            for field in ["stream_options", "return_token_ids", "stop", "ignore_eos"] {
                let with = all.iter().filter(|ask| ask.path == path && !ask.body[field].is_null()).count();
                assert!((10..=95).contains(&with), "{path} {field}: {with}");
            }
        }
        let mut bodies: Vec<String> = all.iter().map(|ask| ask.body.to_string()).collect();
        bodies.sort();
        bodies.dedup();
        assert_eq!(bodies.len(), 200);
    }
}
