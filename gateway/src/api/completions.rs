//! `POST /v1/completions`.

use super::answer::json;
use super::chat::finish_reason;
use super::client::Caller;
use super::preparation::Task;
use super::stream::{self, Chunks, Events, PlainChunk, SAMPLE_INDEX, SAMPLE_TEXT, finite};
use super::{ApiState, unix_s};
use crate::generation::{Generation, Piece, ScoredToken};
use crate::openai::{
    ApiError, Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, FinishReasonName,
    PromptInput, StreamOptions, Usage,
};
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use serde_json::{Map, Value};
use std::fmt::Write;
use std::sync::Arc;

/// Continues one or more prompts.
pub async fn completions(
    State(state): State<Arc<ApiState>>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let body = state.read(body).await?;
    let request = state.parse(&body, CompletionRequest::parse).await?;
    state.check_model(&request.model)?;
    ApiState::log_unknown(&request.unknown_fields);
    let CompletionRequest { model, prompts, max_tokens, generation: fields, .. } = request;
    let prompts = state
        .prepare("prompt", body.len(), move |model| {
            let tokens = |prompt| match prompt {
                PromptInput::Text(text) => model.text_prompt(&text),
                PromptInput::Tokens(tokens) => model.token_prompt(tokens),
            };
            prompts.into_iter().map(tokens).collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let choices = prompts.len() as u32 * fields.choices;
    drop(body);
    let task = Task { prompts, max_tokens: Some(max_tokens), fields: &fields, param: "prompt" };
    let generation = state.start(task, &caller)?;
    let shape = Shape {
        id: format!("cmpl-{}", uuid::Uuid::new_v4().simple()),
        created: unix_s(),
        model: state.answered_model(&model),
        choices,
        logprobs: fields.sampling.logprobs,
        stream: fields.stream,
    };
    match fields.stream {
        StreamOptions::Off => shape.whole(generation).await,
        StreamOptions::Events | StreamOptions::EventsWithUsage => {
            Ok(stream::respond(generation, Streamed::new(shape)))
        }
    }
}

/// What every part of one answer has in common.
struct Shape {
    id: String,
    created: u64,
    model: String,
    /// Prompts × n.
    choices: u32,
    logprobs: Option<u32>,
    stream: StreamOptions,
}

impl Shape {
    async fn whole(self, mut generation: Generation) -> Result<Response, ApiError> {
        let empty = |index| CompletionChoice {
            index,
            text: String::new(),
            logprobs: self.logprobs.map(|_| CompletionLogprobs::default()),
            finish_reason: Some(FinishReasonName::Length),
        };
        let mut choices: Vec<CompletionChoice> = (0..self.choices).map(empty).collect();
        while let Some(piece) = generation.next().await {
            let piece = piece?;
            let choice = &mut choices[piece.choice as usize];
            choice.text.push_str(&piece.text);
            if let Some(logprobs) = &mut choice.logprobs {
                append(logprobs, piece.tokens);
            }
            if let Some(end) = piece.end {
                choice.finish_reason = Some(finish_reason(end));
            }
        }
        let usage = Usage::new(generation.prompt_tokens(), generation.completion_tokens());
        Ok(json(&self.answer(choices, Some(Some(usage)))))
    }

    fn answer(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }

    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
        let usage = (self.stream == StreamOptions::EventsWithUsage).then_some(usage);
        self.answer(choices, usage)
    }
}

/// The same as a stream.
struct Streamed {
    shape: Shape,
    plain: Option<PlainChunk>,
}

impl Streamed {
    fn new(shape: Shape) -> Self {
        let text = SAMPLE_TEXT.to_owned();
        let choice = CompletionChoice { index: SAMPLE_INDEX, text, logprobs: None, finish_reason: None };
        Self { plain: PlainChunk::of(&shape.chunk(vec![choice], None)), shape }
    }
}

impl Chunks for Streamed {
    fn opening(&self, _events: &mut Events) {}

    fn piece(&self, piece: Piece, events: &mut Events) {
        if let (Some(plain), None, true) = (&self.plain, piece.end, piece.tokens.is_empty()) {
            return plain.write(piece.choice, &piece.text, events);
        }
        let logprobs = self.shape.logprobs.filter(|_| !piece.tokens.is_empty()).map(|_| {
            let mut logprobs = CompletionLogprobs::default();
            append(&mut logprobs, piece.tokens);
            logprobs
        });
        let finish_reason = piece.end.map(finish_reason);
        let choice = CompletionChoice { index: piece.choice, text: piece.text, logprobs, finish_reason };
        events.chunk(&self.shape.chunk(vec![choice], None));
    }

    fn usage(&self, usage: Usage, events: &mut Events) {
        if self.shape.stream == StreamOptions::EventsWithUsage {
            events.chunk(&self.shape.chunk(Vec::new(), Some(usage)));
        }
    }
}

fn append(logprobs: &mut CompletionLogprobs, tokens: Vec<ScoredToken>) {
    for token in tokens {
        let text = token_text(&token.bytes);
        let mut top = Map::new();
        for (bytes, logprob) in &token.top {
            // Of two tokens with one text the likelier stands.
            top.entry(token_text(bytes)).or_insert_with(|| number(*logprob));
        }
        top.entry(text.clone()).or_insert_with(|| number(token.logprob));
        logprobs.text_offset.push(token.text_offset);
        logprobs.token_logprobs.push(finite(token.logprob));
        logprobs.tokens.push(text);
        logprobs.top_logprobs.push(top);
    }
}

/// The shortest decimal that is this f32, as in the other lists; a plain conversion would show digits of f64.
fn number(logprob: f32) -> Value {
    let logprob = finite(logprob);
    Value::from(logprob.to_string().parse().unwrap_or(f64::from(logprob)))
}

/// A token as this endpoint writes it: its text, or its bytes where they are no UTF-8.
fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
            text
        }),
    }
}
