//! What a client asks for, checked as vLLM checks it.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::reply::ApiError;
use crate::tokens::{self, Token};

/// vLLM's default for `/v1/completions`; a chat may fill the context.
const COMPLETION_TOKENS_DEFAULT: i64 = 16;
/// More choices than any test wants; bounds the work of one request.
const CHOICES_MAX: u32 = 64;

/// One request, ready to run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) is_chat: bool,
    pub(crate) model: String,
    pub(crate) prompts: Vec<Vec<Token>>,
    /// Answers to each prompt.
    pub(crate) choices: u32,
    pub(crate) limits: Limits,
    pub(crate) is_stream: bool,
    pub(crate) with_usage: bool,
    pub(crate) with_usage_always: bool,
    pub(crate) with_token_ids: bool,
}

/// When an answer ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Limits {
    /// `None`: as far as the context goes.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) min_tokens: usize,
    pub(crate) ignores_end: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: Vec<Token>,
}

/// What the checks need to know of the engine.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) names: Vec<String>,
    pub(crate) max_model_len: usize,
}

impl Served {
    fn name(&self, asked: Option<&String>) -> Result<String, ApiError> {
        match asked {
            None => Ok(self.names[0].clone()),
            Some(name) if self.names.contains(name) => Ok(name.clone()),
            Some(name) => Err(ApiError::unknown_model(name, &self.names.join(", "))),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    prompt: Option<Prompt>,
    messages: Option<Vec<Message>>,
    add_generation_prompt: Option<bool>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    min_tokens: Option<usize>,
    n: Option<u32>,
    temperature: Option<f64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    return_token_ids: Option<bool>,
    ignore_eos: Option<bool>,
    stop: Option<OneOrMore>,
    stop_token_ids: Option<Vec<Token>>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<Token>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<Token>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Value>),
}

impl Job {
    pub(crate) fn completion(body: &[u8], served: &Served) -> Result<Self, ApiError> {
        let body: Body = parse(body)?;
        let model = served.name(body.model.as_ref())?;
        let prompts = match &body.prompt {
            Some(Prompt::Tokens(tokens)) if tokens.is_empty() => {
                return Err(ApiError::bad_request("You must pass at least one prompt", None));
            }
            Some(Prompt::Text(text)) if !text.is_empty() => vec![tokens::encode(text)],
            Some(Prompt::Tokens(tokens)) => vec![tokens.clone()],
            Some(Prompt::Texts(texts)) => texts.iter().map(|text| tokens::encode(text)).collect(),
            Some(Prompt::TokenLists(lists)) => lists.clone(),
            Some(Prompt::Text(_)) | None => {
                let message =
                    "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)";
                return Err(ApiError::bad_request(message, Some("prompt")));
            }
        };
        let max_tokens = body.max_tokens.or(Some(COMPLETION_TOKENS_DEFAULT));
        Self::checked(body, served, model, prompts, max_tokens, false)
    }

    pub(crate) fn chat(body: &[u8], served: &Served) -> Result<Self, ApiError> {
        let body: Body = parse(body)?;
        let prompt = chat_prompt(&body)?;
        let model = served.name(body.model.as_ref())?;
        let max_tokens = body.max_completion_tokens.or(body.max_tokens);
        Self::checked(body, served, model, vec![prompt], max_tokens, true)
    }

    fn checked(
        body: Body,
        served: &Served,
        model: String,
        prompts: Vec<Vec<Token>>,
        max_tokens: Option<i64>,
        is_chat: bool,
    ) -> Result<Self, ApiError> {
        let limit = served.max_model_len;
        let max_tokens = max_tokens.map(|asked| check_max_tokens(asked, limit)).transpose()?;
        for prompt in &prompts {
            check_prompt(prompt, limit)?;
        }
        if let Some(temperature) = body.temperature.filter(|temperature| *temperature < 0.0) {
            let message = format!("temperature must be non-negative, got {temperature:?}.");
            return Err(ApiError::bad_parameter(&message, "temperature", &format!("{temperature:?}")));
        }
        let choices = body.n.unwrap_or(1);
        if choices > 1 && body.temperature == Some(0.0) {
            let message = format!("n must be 1 when using greedy sampling, got {choices}.");
            return Err(ApiError::bad_request(&message, None));
        }
        if choices == 0 || choices > CHOICES_MAX {
            let message = format!("n must be between 1 and {CHOICES_MAX}, got {choices}.");
            return Err(ApiError::bad_request(&message, Some("n")));
        }
        let stream_options = body.stream_options.as_ref();
        Ok(Self {
            is_chat,
            model,
            prompts,
            choices,
            limits: Limits {
                max_tokens,
                min_tokens: body.min_tokens.unwrap_or(0),
                ignores_end: body.ignore_eos.unwrap_or(false),
                stop: match body.stop {
                    None => Vec::new(),
                    Some(OneOrMore::One(text)) => vec![text],
                    Some(OneOrMore::More(texts)) => texts,
                },
                stop_token_ids: body.stop_token_ids.unwrap_or_default(),
            },
            is_stream: body.stream.unwrap_or(false),
            with_usage: stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            with_usage_always: stream_options
                .and_then(|options| options.continuous_usage_stats)
                .unwrap_or(false),
            with_token_ids: body.return_token_ids.unwrap_or(false),
        })
    }
}

/// The tokens of a `/tokenize` request, which holds a prompt or a chat.
pub(crate) fn to_tokenize(body: &[u8], served: &Served) -> Result<Vec<Token>, ApiError> {
    let body: Body = parse(body)?;
    served.name(body.model.as_ref())?;
    match &body.prompt {
        Some(Prompt::Text(text)) => Ok(tokens::encode(text)),
        Some(_) => Err(ApiError::invalid("body.prompt", "string_type", "Input should be a valid string")),
        None => chat_prompt(&body),
    }
}

pub(crate) fn to_detokenize(body: &[u8], served: &Served) -> Result<Vec<Token>, ApiError> {
    #[derive(Deserialize)]
    struct Detokenize {
        model: Option<String>,
        tokens: Vec<Token>,
    }
    let body: Detokenize = parse(body)?;
    served.name(body.model.as_ref())?;
    Ok(body.tokens)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid("body", "json_invalid", &error.to_string()))
}

fn chat_prompt(body: &Body) -> Result<Vec<Token>, ApiError> {
    let messages = body
        .messages
        .as_ref()
        .ok_or_else(|| ApiError::invalid("body.messages", "missing", "Field required"))?;
    let spoken = messages.iter().map(|message| {
        let content = message.content.as_ref().map_or_else(String::new, Content::text);
        (message.role.as_str(), content)
    });
    Ok(tokens::encode_chat(spoken, body.add_generation_prompt.unwrap_or(true)))
}

impl Content {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => {
                parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

fn check_max_tokens(asked: i64, limit: usize) -> Result<usize, ApiError> {
    let refused = |message: &str| ApiError::bad_parameter(message, "max_tokens", &asked.to_string());
    match usize::try_from(asked) {
        Err(_) | Ok(0) => Err(refused(&format!("max_tokens must be at least 1, got {asked}."))),
        Ok(tokens) if tokens > limit => Err(refused(&format!(
            "max_tokens={tokens} cannot be greater than max_model_len={limit}. Please request fewer output tokens."
        ))),
        Ok(tokens) => Ok(tokens),
    }
}

/// An answer that would outgrow the context is cut there, not refused; only a prompt without room for an answer is.
fn check_prompt(prompt: &[Token], limit: usize) -> Result<(), ApiError> {
    if let Some(token) = prompt.iter().find(|token| **token >= tokens::vocabulary_size()) {
        return Err(ApiError::bad_request(&format!("Token id {token} is out of vocabulary"), None));
    }
    let length = prompt.len();
    if length < limit {
        return Ok(());
    }
    if length == limit {
        return check_max_tokens(0, limit).map(drop);
    }
    let message = format!(
        "This model's maximum context length is {limit} tokens. However, your prompt contains {length} input tokens, \
         which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
    );
    Err(ApiError::bad_parameter(&message, "input_tokens", &length.to_string()))
}
