//! Parts that several answers share: models, usage, finish reasons.

use serde::Serialize;

/// One served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// What requests name in `model`.
    pub id: String,
    /// Always `model`.
    pub object: &'static str,
    /// When the server started, Unix seconds.
    pub created: u64,
    /// Always `rocmforge`.
    pub owned_by: &'static str,
}

/// Answer of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// Always `list`.
    pub object: &'static str,
    /// Every served model.
    pub data: Vec<Model>,
}

/// Tokens a request cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Over all prompts, each counted once whatever `n` is.
    pub prompt_tokens: u64,
    /// Over all choices, stop tokens included.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

impl Usage {
    /// Of these counts.
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// Why a choice ended, as the API spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReasonName {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
}

/// `stream` and `stream_options` of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamOptions {
    /// One JSON answer.
    Off,
    /// Server-sent events.
    Events,
    /// Server-sent events, one with the usage at the end.
    EventsWithUsage,
}
