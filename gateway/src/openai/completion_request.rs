//! The body of `POST /v1/completions`.

use super::error::ApiError;
use super::fields::{Fields, parse_body, refuse, show};
use super::sampling::{GenerationFields, token_ids};
use super::unsupported::{self, Neutral};
use serde_json::Value;
use shared::ids::TokenId;

/// Most prompts of one request: each becomes a sequence of its own.
pub const PROMPTS_MAX: usize = 256;
/// `max_tokens` without one (OpenAI's default).
const MAX_TOKENS_DEFAULT: u32 = 16;
/// Most alternatives per token (OpenAI's limit for this endpoint).
const LOGPROBS_MAX: i64 = 5;

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptInput {
    /// Text to tokenize.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<TokenId>),
}

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The model asked for.
    pub model: String,
    /// At least one.
    pub prompts: Vec<PromptInput>,
    /// Most tokens per choice.
    pub max_tokens: u32,
    /// The rest.
    pub generation: GenerationFields,
    /// Fields this server does not know.
    pub unknown_fields: Vec<String>,
}

/// Known to the API and not implemented.
const UNSUPPORTED: &[(&str, &[Neutral])] = &[
    ("best_of", &[Neutral::One]),
    ("echo", &[Neutral::False]),
    ("suffix", &[Neutral::EmptyString]),
    ("response_format", &[Neutral::TextFormat]),
];

impl CompletionRequest {
    /// Reads and checks a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let object = parse_body(body)?;
        let fields = Fields::of_body(&object);
        let model = required_model(&fields)?;
        let prompts = prompts(&fields)?;
        let max_tokens = fields.integer("max_tokens", 1..=i64::from(u32::MAX))?.map(|tokens| tokens as u32);
        let mut generation = GenerationFields::read(&fields)?;
        generation.sampling.logprobs = fields.integer("logprobs", 0..=LOGPROBS_MAX)?.map(|top| top as u32);
        unsupported::check(&fields, UNSUPPORTED)?;
        unsupported::ignore(&fields, &["user", "metadata"]);
        check_choices(prompts.len(), generation.choices)?;
        let max_tokens = max_tokens.unwrap_or(MAX_TOKENS_DEFAULT);
        Ok(Self { model, prompts, max_tokens, generation, unknown_fields: fields.unknown() })
    }
}

/// `model`, which both endpoints require.
pub(super) fn required_model(fields: &Fields<'_>) -> Result<String, ApiError> {
    let model = fields.string("model")?;
    model.map(str::to_owned).ok_or_else(|| ApiError::field("model", "model is missing, it must be a string"))
}

/// Prompts times choices are sequences; their number is bounded as that of prompts is.
fn check_choices(prompts: usize, choices: u32) -> Result<(), ApiError> {
    let sequences = prompts.saturating_mul(choices as usize);
    if sequences <= PROMPTS_MAX {
        return Ok(());
    }
    let message = format!("{prompts} prompts with n {choices} are {sequences} choices, limit {PROMPTS_MAX}");
    Err(ApiError::field("n", message))
}

fn prompts(fields: &Fields<'_>) -> Result<Vec<PromptInput>, ApiError> {
    let Some(value) = fields.get("prompt") else {
        return Err(ApiError::field("prompt", "prompt is missing, it must be a string or an array"));
    };
    let items = match value {
        Value::String(text) => return Ok(vec![PromptInput::Text(text.clone())]),
        Value::Array(items) => items,
        other => return Err(refuse("prompt", show(other), "a string or an array")),
    };
    match items.first() {
        None => Err(refuse("prompt", "an empty array", "a string or a non-empty array")),
        Some(Value::Number(_)) => Ok(vec![PromptInput::Tokens(token_ids(items, "prompt")?)]),
        Some(_) if items.len() > PROMPTS_MAX => Err(refuse(
            "prompt",
            format!("an array of {}", items.len()),
            format!("at most {PROMPTS_MAX} long"),
        )),
        Some(_) => items.iter().enumerate().map(|(index, item)| one_of_many(index, item)).collect(),
    }
}

fn one_of_many(index: usize, item: &Value) -> Result<PromptInput, ApiError> {
    let path = format!("prompt[{index}]");
    match item {
        Value::String(text) => Ok(PromptInput::Text(text.clone())),
        Value::Array(ids) => Ok(PromptInput::Tokens(token_ids(ids, &path)?)),
        other => Err(refuse(path, show(other), "a string or an array of token ids")),
    }
}
