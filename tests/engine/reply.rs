//! The shapes of vLLM's answers.

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::generation::{Answer, Piece};
use crate::request::{Job, Served};
use crate::tokens::Token;

/// The release whose answers these are.
pub(crate) const VERSION: &str = "0.32.0";
const FINGERPRINT: &str = "vllm-0.32.0-standin";

/// What every part of one answer repeats.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    id: String,
    created: u64,
    model: String,
    is_chat: bool,
    with_token_ids: bool,
    with_usage: bool,
    with_usage_always: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
}

impl Envelope {
    pub(crate) fn new(job: &Job) -> Self {
        let prefix = if job.is_chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: format!("{prefix}-{:016x}", fastrand::u64(..)),
            created: unix_seconds(),
            model: job.model.clone(),
            is_chat: job.is_chat,
            with_token_ids: job.with_token_ids,
            with_usage: job.with_usage,
            with_usage_always: job.with_usage_always,
        }
    }

    fn object(&self, choices: Vec<Value>) -> Value {
        let object = if self.is_chat { "chat.completion" } else { "text_completion" };
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.object(choices);
        if self.is_chat {
            chunk["object"] = json!("chat.completion.chunk");
        }
        chunk
    }

    fn ids(&self, tokens: &[Token]) -> Value {
        if self.with_token_ids { json!(tokens) } else { Value::Null }
    }

    pub(crate) fn whole(&self, answers: &[Answer], usage: Usage) -> Value {
        let mut reply = self.object(answers.iter().map(|answer| self.whole_choice(answer)).collect());
        merge(
            &mut reply,
            json!({
                "service_tier": null,
                "system_fingerprint": FINGERPRINT,
                "usage": usage.whole(),
                "kv_transfer_params": null,
                "ec_transfer_params": null,
                "metrics": null,
            }),
        );
        if self.is_chat {
            let prompt = answers.first().map_or(Value::Null, |answer| self.ids(&answer.prompt));
            merge(
                &mut reply,
                json!({"prompt_logprobs": null, "prompt_token_ids": prompt, "prompt_text": null}),
            );
        }
        reply
    }

    fn whole_choice(&self, answer: &Answer) -> Value {
        let mut choice = json!({
            "index": answer.index,
            "logprobs": null,
            "finish_reason": answer.finish.reason.name(),
            "stop_reason": answer.finish.stop_reason,
            "token_ids": self.ids(&answer.tokens),
            "routed_experts": null,
        });
        let own = if self.is_chat {
            json!({"message": {
                "role": "assistant",
                "content": answer.text,
                "refusal": null,
                "annotations": null,
                "audio": null,
                "function_call": null,
                "reasoning": null,
            }})
        } else {
            json!({"text": answer.text, "prompt_logprobs": null, "prompt_token_ids": self.ids(&answer.prompt)})
        };
        merge(&mut choice, own);
        choice
    }

    /// The chunk with which each choice of a chat begins: the role, and the prompt for whoever wants to continue it.
    pub(crate) fn role(&self, index: usize, prompt: &[Token], usage: Usage) -> Value {
        let delta = json!({"role": "assistant", "content": ""});
        let mut chunk = self
            .chunk(vec![json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null})]);
        merge(&mut chunk, json!({"prompt_token_ids": self.ids(prompt), "prompt_text": null}));
        self.add_usage(&mut chunk, usage);
        chunk
    }

    /// `prompt` is there in the first chunk of a completion only.
    pub(crate) fn piece(&self, piece: &Piece, prompt: Option<&[Token]>, usage: Usage) -> Value {
        let mut choice = json!({
            "index": piece.index,
            "logprobs": null,
            "finish_reason": piece.finish.as_ref().map(|finish| finish.reason.name()),
            "token_ids": self.ids(&piece.tokens),
        });
        let stop_reason = piece.finish.as_ref().map(|finish| json!(finish.stop_reason));
        if self.is_chat {
            choice["delta"] = json!({"content": piece.text});
            if let Some(stop_reason) = stop_reason {
                choice["stop_reason"] = stop_reason;
            }
        } else {
            let prompt = prompt.map_or(Value::Null, |prompt| self.ids(prompt));
            let stop_reason = stop_reason.unwrap_or(Value::Null);
            merge(
                &mut choice,
                json!({"text": piece.text, "stop_reason": stop_reason, "prompt_token_ids": prompt}),
            );
        }
        let mut chunk = self.chunk(vec![choice]);
        if piece.finish.is_some() && !self.with_usage {
            chunk["system_fingerprint"] = json!(FINGERPRINT);
        }
        self.add_usage(&mut chunk, usage);
        chunk
    }

    fn add_usage(&self, chunk: &mut Value, usage: Usage) {
        if self.with_usage_always {
            chunk["usage"] = usage.short();
        }
    }

    pub(crate) fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.chunk(Vec::new());
        merge(&mut chunk, json!({"usage": usage.short(), "system_fingerprint": FINGERPRINT}));
        chunk
    }
}

impl Usage {
    fn short(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
        })
    }

    fn whole(self) -> Value {
        let mut usage = self.short();
        merge(&mut usage, json!({"prompt_tokens_details": null, "completion_tokens_details": null}));
        usage
    }
}

pub(crate) fn models(served: &Served, root: &str, created: u64) -> Value {
    let permission = json!({
        "id": "modelperm-standin",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": false,
        "allow_sampling": true,
        "allow_logprobs": true,
        "allow_search_indices": false,
        "allow_view": true,
        "allow_fine_tuning": false,
        "organization": "*",
        "group": null,
        "is_blocking": false,
    });
    let card = |name: &String| {
        json!({
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": root,
            "parent": null,
            "max_model_len": served.max_model_len,
            "permission": [permission],
        })
    };
    json!({"object": "list", "data": served.names.iter().map(card).collect::<Vec<_>>()})
}

/// A refusal in the OpenAI error format, with vLLM's words.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: &str, param: Option<&str>) -> Self {
        Self { status, kind, message: message.to_owned(), param: param.map(str::to_owned) }
    }

    pub(crate) fn bad_request(message: &str, param: Option<&str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message, param)
    }

    pub(crate) fn bad_parameter(message: &str, param: &str, value: &str) -> Self {
        Self::bad_request(&format!("{message} (parameter={param}, value={value})"), Some(param))
    }

    /// A body that does not have the right shape; vLLM calls this type otherwise than a value that is wrong.
    pub(crate) fn invalid(place: &str, kind: &str, message: &str) -> Self {
        let message =
            format!("1 validation error:\n  {{'type': '{kind}', 'loc': '{place}', 'msg': '{message}'}}");
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", &message, Some(place))
    }

    pub(crate) fn unknown_model(name: &str, known: &str) -> Self {
        let message = format!("The model `{name}` does not exist. Valid aliases: {known}.");
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", &message, Some("model"))
    }

    pub(crate) fn scale_out_is_off() -> Self {
        let message =
            "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.";
        Self::new(StatusCode::FORBIDDEN, "PermissionDeniedError", message, None)
    }

    pub(crate) fn queue_is_full() -> Self {
        let message = "The engine is currently busy and cannot accept new requests. \
                       Please try again later or on a different instance.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message, None)
    }

    pub(crate) fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message, None)
    }

    pub(crate) fn core_is_dead() -> Self {
        Self::internal("EngineCore encountered an issue. See stack trace (above) for the root cause.")
    }

    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status.as_u16(),
        }})
    }
}

pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Adds the fields of one object to another.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
