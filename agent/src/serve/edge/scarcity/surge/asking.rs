//! A user's request as the API outside is to see it: its model's name there, our credentials, and nothing else of the
//! user's headers.

use hyper::Uri;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};

use super::super::super::answer::REQUEST_ID_HEADER;
use super::super::super::request::Buffered;
use super::spec::SurgeSpec;
use super::usage::BYTES_PER_TOKEN;

/// What every such API has; anything else under `/v1` is this fleet's own.
const PATHS: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

/// Tokens that are set aside for an answer without a bound of its own: the longest most models give.
const OUTPUT_TOKENS_ASSUMED: u64 = 4096;

/// One request, written anew.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) request: Buffered,
    pub(super) is_stream: bool,
    /// The user did not ask for the usage of its stream.
    pub(super) strips_usage: bool,
    pub(super) input_tokens_guess: u64,
    /// The most that the answer is expected to take.
    pub(super) output_tokens_max: u64,
}

impl Asking {
    /// `None` for what cannot go there: another path, a model without a name there, no JSON.
    pub(super) fn new(request: &Buffered, model: &str, spec: &SurgeSpec) -> Option<Self> {
        let path = request.path();
        let theirs = spec.models.get(model).filter(|_| PATHS.contains(&path))?;
        let mut body: Map<String, Value> = serde_json::from_slice(request.body()).ok()?;
        body.insert("model".to_owned(), json!(theirs));
        let is_stream = body.get("stream").and_then(Value::as_bool) == Some(true);
        let asked = body.get("stream_options").and_then(|options| options["include_usage"].as_bool());
        let strips_usage = is_stream && asked != Some(true);
        if strips_usage {
            let options = body.entry("stream_options").or_insert_with(|| json!({}));
            if !options.is_object() {
                *options = json!({});
            }
            options["include_usage"] = json!(true);
        }
        let number = |key: &str| body.get(key).and_then(Value::as_u64);
        let bound = number("max_completion_tokens").or_else(|| number("max_tokens"));
        let choices = number("n").unwrap_or(1).max(1);
        let output_tokens_max = match path {
            "/v1/embeddings" => 0,
            _ => bound.unwrap_or(OUTPUT_TOKENS_ASSUMED).saturating_mul(choices),
        };
        let input_tokens_guess = request.body().len() as u64 / BYTES_PER_TOKEN + 1;
        // A path of ours below a base that was parsed as a URI.
        let target: Uri = format!("{}{}", spec.url.path, path.strip_prefix("/v1")?).parse().ok()?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, spec.authorization.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.insert(REQUEST_ID_HEADER, request.request_id.clone());
        let body = Value::Object(body).to_string().into();
        let request = request.rewritten(target, headers, body);
        Some(Self { request, is_stream, strips_usage, input_tokens_guess, output_tokens_max })
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::super::spec::Price;
    use super::*;

    fn spec() -> SurgeSpec {
        SurgeSpec {
            url: "https://api.example.com/openai/v1".parse().unwrap(),
            authorization: HeaderValue::from_static("Bearer ours"),
            models: [("tiny".to_owned(), "large".to_owned())].into(),
            price: Price { input_microusd_per_million: 1, output_microusd_per_million: 1 },
            in_flight_max: 1,
            budget_microusd_per_hour: 1,
            is_for_batch: false,
        }
    }

    fn asked(path: &str, body: &Value) -> Buffered {
        let request = Request::post(path)
            .header("authorization", "Bearer the user's")
            .header("cookie", "a=b")
            .header("x-cic-class", "standard");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Buffered::new(parts, body.to_string().into())
    }

    #[test]
    fn only_our_credentials_and_the_models_name_there_go_outside() {
        let body = json!({"model": "tiny", "messages": [], "max_tokens": 9, "n": 2});
        let asking = Asking::new(&asked("/v1/chat/completions", &body), "tiny", &spec()).unwrap();
        let copy = asking.request.copy(&HeaderValue::from_static("api.example.com"));
        assert_eq!(copy.uri().path(), "/openai/v1/chat/completions");
        let mut names: Vec<&str> = copy.headers().keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "authorization", "content-type", "host", "x-request-id"]);
        assert_eq!(copy.headers()[AUTHORIZATION], "Bearer ours");
        let sent: Value = serde_json::from_slice(asking.request.body()).unwrap();
        assert_eq!(sent, json!({"model": "large", "messages": [], "max_tokens": 9, "n": 2}));
        assert_eq!((asking.output_tokens_max, asking.is_stream, asking.strips_usage), (18, false, false));
    }

    #[test]
    fn a_stream_is_asked_for_its_usage_which_is_the_users_only_where_it_asked() {
        for (options, strips_usage) in [
            (Value::Null, true),
            (json!({"include_usage": false, "other": 1}), true),
            (json!({"include_usage": true}), false),
        ] {
            let body = json!({"model": "tiny", "prompt": "a", "stream": true, "stream_options": options});
            let asking = Asking::new(&asked("/v1/completions", &body), "tiny", &spec()).unwrap();
            let sent: Value = serde_json::from_slice(asking.request.body()).unwrap();
            assert_eq!(sent["stream_options"]["include_usage"], true);
            assert_eq!((asking.is_stream, asking.strips_usage), (true, strips_usage), "{options}");
            assert_eq!(asking.output_tokens_max, OUTPUT_TOKENS_ASSUMED);
        }
    }

    #[test]
    fn what_the_api_outside_cannot_know_stays() {
        let body = json!({"model": "tiny"});
        for (path, model, body) in [
            ("/v1/tokenize", "tiny", body.clone()),
            ("/v1/chat/completions", "unmapped", body),
            ("/v1/chat/completions", "tiny", json!([1])),
        ] {
            assert!(Asking::new(&asked(path, &body), model, &spec()).is_none(), "{path} {model}");
        }
    }
}
