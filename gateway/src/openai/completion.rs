//! Answers of `/v1/completions`; a stream's chunks have the same shape.

use super::model::{FinishReasonName, Usage};
use serde::Serialize;
use serde_json::{Map, Value};

/// The whole answer, or one chunk of a stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// `cmpl-…`, the same in every chunk.
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Unix seconds, the same in every chunk.
    pub created: u64,
    /// The served model's id.
    pub model: String,
    /// Prompts × n; in a chunk one, or none beside the usage.
    pub choices: Vec<CompletionChoice>,
    /// Absent in chunks unless usage was asked for, then null in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// One choice, or a piece of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Prompt number × n + choice number.
    pub index: u32,
    /// Text without the prompt.
    pub text: String,
    /// Null unless asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Null until the choice ends.
    pub finish_reason: Option<FinishReasonName>,
}

/// Log probabilities in the shape of this endpoint: four lists of one entry per token.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Characters of the choice's text before the token.
    pub text_offset: Vec<u64>,
    /// Of the tokens.
    pub token_logprobs: Vec<f32>,
    /// Texts; `bytes:\xNN…` where a token is no whole UTF-8.
    pub tokens: Vec<String>,
    /// Text to log probability, the token itself included.
    pub top_logprobs: Vec<Map<String, Value>>,
}
