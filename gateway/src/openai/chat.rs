//! Answers of `/v1/chat/completions` and the chunks of its streams. Keys that clients require are there even when null.

use super::model::{FinishReasonName, Usage};
use serde::Serialize;

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The served model's id.
    pub model: String,
    /// One per choice, in order.
    pub choices: Vec<ChatChoice>,
    /// Tokens of prompt and all choices.
    pub usage: Usage,
    /// Always null: there is no tier to choose.
    pub service_tier: Option<&'static str>,
    /// Changes with the server's version.
    pub system_fingerprint: Option<String>,
}

/// One choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Position among the choices.
    pub index: u32,
    /// The assistant's turn.
    pub message: ResponseMessage,
    /// Null unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReasonName,
}

/// The assistant's turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResponseMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: Option<String>,
    /// Always null: this server refuses nothing by itself.
    pub refusal: Option<String>,
}

/// Log probabilities of a choice or of a piece of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Option<Vec<ChatTokenLogprob>>,
    /// Always null.
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatTokenLogprob {
    /// Its text; bytes that are no UTF-8 appear as the replacement character.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
    /// The most likely tokens in its place, as many as asked for.
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
}

/// One chunk of a stream.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChunk {
    /// The same in every chunk.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// The same in every chunk.
    pub created: u64,
    /// The served model's id.
    pub model: String,
    /// One piece of one choice; empty beside the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Changes with the server's version.
    pub system_fingerprint: Option<String>,
    /// Absent unless usage was asked for, then null in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A piece of a choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChunkChoice {
    /// Position among the choices.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Null unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Null until the choice ends.
    pub finish_reason: Option<FinishReasonName>,
}

/// New parts of the assistant's turn.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Delta {
    /// In the first chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Further text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
