//! The OpenAI wire format: request bodies read and checked field by field, answers, stream chunks, the error object.
//!
//! Called by `api`. Types only: nothing here knows axum, tokens' texts or workers. Every field of the published
//! schema is honoured or refused with an error naming it; unknown fields are collected for one log line, never an
//! error, since clients are newer than servers.

mod chat;
mod chat_request;
mod completion;
mod completion_request;
mod error;
mod fields;
mod model;
mod sampling;
mod unsupported;

pub use chat::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, ChatTokenLogprob, Delta,
    ResponseMessage, TopLogprob,
};
pub use chat_request::{ChatRequest, MESSAGES_MAX};
pub use completion::{Completion, CompletionChoice, CompletionLogprobs};
pub use completion_request::{CompletionRequest, PROMPTS_MAX, PromptInput};
pub use error::{ApiError, ErrorKind};
pub use model::{FinishReasonName, Model, ModelList, StreamOptions, Usage};
pub use sampling::{CHOICES_MAX, GenerationFields};
