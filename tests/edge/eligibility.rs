//! Every kind of stream is cut: what another replica can go on with exactly, or as validly, comes to its end; what it
//! cannot ends in an error that says so, and never as if it were whole.

use std::sync::Arc;
use std::time::Duration;

use fleet_tests::process::{Ask, Choir, DevFleet, Heard, Options, Strike};
use serde_json::{Value, json};

use crate::scenario::{undisturbed, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Six seconds at 20 ms each: time for two strikes and a restart in between.
const TOKENS: usize = 300;

/// Events of a stream before it may be struck, so that it has begun beyond doubt.
const EVENTS_MIN: usize = 5;

const COMPLETION: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// What becomes of a stream that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Whole,
    NotResumable,
}

use Outcome::{NotResumable, Whole};

/// Name, path, what the request says beside a prompt, and what becomes of it.
type Row = (&'static str, &'static str, Value, Outcome);

fn rows() -> Vec<Row> {
    let tools =
        json!([{ "type": "function", "function": { "name": "look", "parameters": { "type": "object" } } }]);
    let schema = json!({ "name": "s", "schema": { "type": "object" } });
    vec![
        ("greedy", COMPLETION, json!({ "temperature": 0 }), Whole),
        ("greedy", CHAT, json!({ "temperature": 0 }), Whole),
        ("sampled by default", COMPLETION, json!({}), Whole),
        ("sampled by default", CHAT, json!({}), Whole),
        ("sampled", COMPLETION, json!({ "temperature": 0.8, "top_p": 0.9 }), Whole),
        ("sampled", CHAT, json!({ "temperature": 0.8, "top_k": 20 }), Whole),
        ("usage", COMPLETION, json!({ "stream_options": { "include_usage": true } }), Whole),
        ("usage", CHAT, json!({ "stream_options": { "include_usage": true } }), Whole),
        ("token ids", COMPLETION, json!({ "return_token_ids": true, "temperature": 0 }), Whole),
        ("token ids", CHAT, json!({ "return_token_ids": true, "temperature": 0 }), Whole),
        ("a stop string that does not come", COMPLETION, json!({ "stop": ["qqq"] }), Whole),
        ("a stop string that does not come", CHAT, json!({ "stop": "qqq" }), Whole),
        ("a prompt of token ids", COMPLETION, json!({ "prompt": [80, 81, 82, 83] }), Whole),
        (
            "content in parts",
            CHAT,
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hello." }] }] }),
            Whole,
        ),
        ("tools that may not be used", CHAT, json!({ "tools": tools, "tool_choice": "none" }), Whole),
        (
            "defaults spelled out",
            COMPLETION,
            json!({ "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "seed": null, "echo": false, "logprobs": null }),
            Whole,
        ),
        (
            "defaults spelled out",
            CHAT,
            json!({ "n": 1, "presence_penalty": 0.0, "logprobs": false, "seed": null, "response_format": { "type": "text" } }),
            Whole,
        ),
        ("sampled with a seed", COMPLETION, json!({ "temperature": 0.8, "seed": 7 }), NotResumable),
        ("sampled with a seed", CHAT, json!({ "temperature": 0.8, "seed": 7 }), NotResumable),
        ("sampled by default with a seed", CHAT, json!({ "seed": 7 }), NotResumable),
        ("two answers", COMPLETION, json!({ "n": 2, "temperature": 0.8 }), NotResumable),
        ("two answers", CHAT, json!({ "n": 2, "temperature": 0.8 }), NotResumable),
        ("two prompts", COMPLETION, json!({ "prompt": ["one", "two"] }), NotResumable),
        ("logprobs", COMPLETION, json!({ "logprobs": 2 }), NotResumable),
        ("logprobs", CHAT, json!({ "logprobs": true, "top_logprobs": 2 }), NotResumable),
        ("JSON", CHAT, json!({ "response_format": { "type": "json_object" } }), NotResumable),
        (
            "JSON of a schema",
            COMPLETION,
            json!({ "response_format": { "type": "json_schema", "json_schema": schema } }),
            NotResumable,
        ),
        (
            "structured outputs",
            COMPLETION,
            json!({ "structured_outputs": { "regex": "[a-z ]*" } }),
            NotResumable,
        ),
        ("structured outputs", CHAT, json!({ "structured_outputs": { "choice": ["a", "b"] } }), NotResumable),
        ("tools", CHAT, json!({ "tools": tools }), NotResumable),
        ("tools that may be used", CHAT, json!({ "tools": tools, "tool_choice": "auto" }), NotResumable),
        ("presence penalty", COMPLETION, json!({ "presence_penalty": 0.5 }), NotResumable),
        ("frequency penalty", CHAT, json!({ "frequency_penalty": -0.5 }), NotResumable),
        ("echo", COMPLETION, json!({ "echo": true }), NotResumable),
    ]
}

fn ask(row: &Row) -> Ask {
    let (_, path, more, _) = row;
    let mut body = json!({ "model": "tiny", "max_tokens": TOKENS, "ignore_eos": true, "stream": true });
    if *path == COMPLETION {
        body["prompt"] = json!("Tell me a story");
    } else {
        body["messages"] = json!([{ "role": "user", "content": "Tell me a story" }]);
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    Ask { path, body }
}

#[test]
fn a_cut_stream_is_continued_where_that_is_exact_and_else_says_that_it_is_not() {
    let rows = rows();
    let asks: Vec<Ask> = rows.iter().map(ask).collect();
    let mut reference = None;
    let mut wrong = Vec::new();
    // A connection that closes, an error event with `[DONE]`, and an abort.
    for strike in [Strike::Engine, Strike::EngineCore, Strike::EngineStop] {
        // A fleet for each: an engine that failed before would take longer to come back than the streams last.
        let options = Options { engine_args: vec!["--standin-token-ms=20".to_owned()], ..Options::default() };
        let mut fleet = DevFleet::start(&options).expect("a fleet");
        fleet.wait_serving(2, SOON).expect("two replicas serve");
        let reference = reference
            .get_or_insert_with(|| undisturbed(&fleet.edge, &asks, asks.len()).expect("an undisturbed run"));
        let (heard, cut_count) = strike_both(&fleet, &asks, strike);
        assert_eq!(cut_count, rows.len(), "{strike:?}: some stream had ended before its replica was struck");
        for (number, heard) in heard {
            let (name, path, _, outcome) = &rows[number];
            if let Some(why) = judge(*outcome, &heard, &reference[number]) {
                wrong.push(format!("{strike:?}, {name} ({path}): {why}"));
            }
        }
        fleet.stop().expect("nothing is left");
    }
    println!(
        "eligibility: {} kinds of request cut in 3 ways, {} ended as they should not",
        rows.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// All requests at once. One replica is struck, and the other once the first serves again. Returns what was heard, and how
/// many streams were cut.
fn strike_both(fleet: &DevFleet, asks: &[Ask], strike: Strike) -> (Vec<(usize, Heard)>, usize) {
    let nodes = fleet.serving_by_their_word();
    let choir = Choir::start(&fleet.edge, asks, asks.len(), asks.len());
    wait_until("all streams run", SOON, || choir.board.begun(EVENTS_MIN) == asks.len()).expect("all run");
    for node in &nodes {
        wait_until("both serve", SOON, || fleet.serving_by_their_word().len() == 2).expect("both serve");
        choir.board.cut(node);
        strike.perform(fleet, node).expect("struck");
        wait_until("the end of its engine", SOON, || fleet.serving_by_their_word().len() < 2).expect("seen");
    }
    let board = Arc::clone(&choir.board);
    (choir.finish(), board.cuts().len())
}

/// What is wrong with a stream that was cut, if anything.
fn judge(outcome: Outcome, heard: &Heard, reference: &Heard) -> Option<String> {
    match outcome {
        Whole => {
            let found = heard.differences(reference);
            (!found.is_empty()).then(|| found.join("; "))
        }
        NotResumable => {
            let error = heard.events.last().map_or(&Value::Null, |event| &event["error"]);
            let is_told = error["type"] == "server_error"
                && error["code"] == "stream_not_resumable"
                && error["param"].is_null()
                && error["message"].as_str().is_some_and(|message| !message.is_empty());
            let is_right =
                is_told && heard.is_done && heard.events.len() > EVENTS_MIN && heard.finish().is_empty();
            (!is_right).then(|| heard.ending())
        }
    }
}
