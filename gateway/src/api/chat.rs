//! `POST /v1/chat/completions`.

use super::answer::json;
use super::client::Caller;
use super::preparation::Task;
use super::stream::{self, Chunks, Events, PlainChunk, SAMPLE_INDEX, SAMPLE_TEXT, finite};
use super::{ApiState, unix_s};
use crate::generation::{ChoiceEnd, Generation, Piece, ScoredToken};
use crate::openai::{
    ApiError, ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, ChatRequest,
    ChatTokenLogprob, Delta, FinishReasonName, ResponseMessage, StreamOptions, TopLogprob, Usage,
};
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use std::sync::Arc;

/// Answers a conversation.
pub async fn chat_completions(
    State(state): State<Arc<ApiState>>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let body = state.read(body).await?;
    let request = state.parse(&body, ChatRequest::parse).await?;
    state.check_model(&request.model)?;
    ApiState::log_unknown(&request.unknown_fields);
    let ChatRequest { model, messages, template_variables, max_tokens, generation: fields, .. } = request;
    let prompt = state
        .prepare("messages", body.len(), move |model| model.chat_prompt(&messages, &template_variables))
        .await?;
    drop(body);
    let task = Task { prompts: vec![prompt], max_tokens, fields: &fields, param: "messages" };
    let generation = state.start(task, &caller)?;
    let shape = Shape {
        id: format!("chatcmpl-{}", uuid::Uuid::new_v4().simple()),
        created: unix_s(),
        model: state.answered_model(&model),
        choices: fields.choices,
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
    choices: u32,
    logprobs: Option<u32>,
    stream: StreamOptions,
}

impl Shape {
    async fn whole(self, mut generation: Generation) -> Result<Response, ApiError> {
        let mut choices: Vec<ChatChoice> = (0..self.choices).map(|index| self.empty_choice(index)).collect();
        while let Some(piece) = generation.next().await {
            let piece = piece?;
            let choice = &mut choices[piece.choice as usize];
            choice.message.content.get_or_insert_default().push_str(&piece.text);
            if let Some(content) = choice.logprobs.as_mut().and_then(|logprobs| logprobs.content.as_mut()) {
                content.extend(piece.tokens.into_iter().map(|token| self.token(token)));
            }
            if let Some(end) = piece.end {
                choice.finish_reason = finish_reason(end);
            }
        }
        Ok(json(&ChatCompletion {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            choices,
            usage: Usage::new(generation.prompt_tokens(), generation.completion_tokens()),
            service_tier: None,
            system_fingerprint: Some(super::FINGERPRINT.to_owned()),
        }))
    }

    fn empty_choice(&self, index: u32) -> ChatChoice {
        ChatChoice {
            index,
            message: ResponseMessage { role: "assistant", content: Some(String::new()), refusal: None },
            logprobs: self.logprobs.map(|_| ChatLogprobs { content: Some(Vec::new()), refusal: None }),
            finish_reason: FinishReasonName::Length,
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices,
            system_fingerprint: Some(super::FINGERPRINT.to_owned()),
            usage: (self.stream == StreamOptions::EventsWithUsage).then_some(usage),
        }
    }

    fn text_chunk(&self, index: u32, text: String, logprobs: Option<ChatLogprobs>) -> ChatChunk {
        let delta = Delta { role: None, content: Some(text) };
        self.chunk(vec![ChatChunkChoice { index, delta, logprobs, finish_reason: None }], None)
    }

    fn token(&self, token: ScoredToken) -> ChatTokenLogprob {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let wanted = self.logprobs.unwrap_or(0) as usize;
        let top = token.top.into_iter().take(wanted);
        ChatTokenLogprob {
            token: text(&token.bytes),
            logprob: finite(token.logprob),
            bytes: token.bytes,
            top_logprobs: top
                .map(|(bytes, logprob)| TopLogprob { token: text(&bytes), logprob: finite(logprob), bytes })
                .collect(),
        }
    }
}

/// The same as a stream.
struct Streamed {
    shape: Shape,
    plain: Option<PlainChunk>,
}

impl Streamed {
    fn new(shape: Shape) -> Self {
        let sample = shape.text_chunk(SAMPLE_INDEX, SAMPLE_TEXT.to_owned(), None);
        Self { plain: PlainChunk::of(&sample), shape }
    }
}

impl Chunks for Streamed {
    fn opening(&self, events: &mut Events) {
        for index in 0..self.shape.choices {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason: None };
            events.chunk(&self.shape.chunk(vec![choice], None));
        }
    }

    fn piece(&self, piece: Piece, events: &mut Events) {
        let (shape, index) = (&self.shape, piece.choice);
        let says_something = !piece.text.is_empty() || !piece.tokens.is_empty();
        match &self.plain {
            Some(plain) if says_something && shape.logprobs.is_none() => {
                plain.write(index, &piece.text, events);
            }
            _ if says_something => {
                let tokens = piece.tokens.into_iter().map(|token| shape.token(token)).collect();
                let logprobs = shape.logprobs.map(|_| ChatLogprobs { content: Some(tokens), refusal: None });
                events.chunk(&shape.text_chunk(index, piece.text, logprobs));
            }
            _ => {}
        }
        if let Some(end) = piece.end {
            let finish_reason = Some(finish_reason(end));
            let choice = ChatChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason };
            events.chunk(&shape.chunk(vec![choice], None));
        }
    }

    fn usage(&self, usage: Usage, events: &mut Events) {
        if self.shape.stream == StreamOptions::EventsWithUsage {
            events.chunk(&self.shape.chunk(Vec::new(), Some(usage)));
        }
    }
}

pub(super) fn finish_reason(end: ChoiceEnd) -> FinishReasonName {
    match end {
        ChoiceEnd::Stop => FinishReasonName::Stop,
        ChoiceEnd::Length => FinishReasonName::Length,
    }
}
