//! `POST /v1/chat/completions`.

use super::answer::{json, read_body};
use super::stream::{self, Chunks, finite};
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
pub async fn chat_completions(State(state): State<Arc<ApiState>>, body: Body) -> Result<Response, ApiError> {
    let body = read_body(body, state.body_bytes_max()).await?;
    let request = ChatRequest::parse(&body)?;
    drop(body);
    state.check_model(&request.model)?;
    ApiState::log_unknown(&request.unknown_fields);
    let ChatRequest { model, messages, template_variables, max_tokens, generation: fields, .. } = request;
    let prompt =
        state.prepare("messages", move |model| model.chat_prompt(&messages, &template_variables)).await?;
    let generation = state.start(vec![prompt], max_tokens, &fields, "messages")?;
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
        StreamOptions::Events | StreamOptions::EventsWithUsage => Ok(stream::respond(generation, shape)),
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

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> String {
        stream::text(&ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices,
            system_fingerprint: Some(super::FINGERPRINT.to_owned()),
            usage: (self.stream == StreamOptions::EventsWithUsage).then_some(usage),
        })
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

impl Chunks for Shape {
    fn opening(&self) -> Vec<String> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        let choice =
            |index| ChatChunkChoice { index, delta: delta.clone(), logprobs: None, finish_reason: None };
        (0..self.choices).map(|index| self.chunk(vec![choice(index)], None)).collect()
    }

    fn piece(&self, piece: Piece) -> Vec<String> {
        let mut texts = Vec::with_capacity(2);
        let index = piece.choice;
        if !piece.text.is_empty() || !piece.tokens.is_empty() {
            let tokens = piece.tokens.into_iter().map(|token| self.token(token)).collect();
            let logprobs = self.logprobs.map(|_| ChatLogprobs { content: Some(tokens), refusal: None });
            let delta = Delta { role: None, content: Some(piece.text) };
            texts.push(
                self.chunk(vec![ChatChunkChoice { index, delta, logprobs, finish_reason: None }], None),
            );
        }
        if let Some(end) = piece.end {
            let finish_reason = Some(finish_reason(end));
            let choice = ChatChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason };
            texts.push(self.chunk(vec![choice], None));
        }
        texts
    }

    fn usage(&self, usage: Usage) -> Option<String> {
        (self.stream == StreamOptions::EventsWithUsage).then(|| self.chunk(Vec::new(), Some(usage)))
    }
}

pub(super) fn finish_reason(end: ChoiceEnd) -> FinishReasonName {
    match end {
        ChoiceEnd::Stop => FinishReasonName::Stop,
        ChoiceEnd::Length => FinishReasonName::Length,
    }
}
