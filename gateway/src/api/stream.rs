//! A generation as server-sent events.
//!
//! One `id` and `created` per stream. After the pieces of all choices comes the usage if asked for, then `[DONE]`.
//! A generation that fails ends with an event holding the error object, and no `[DONE]`.

use crate::generation::{Generation, Piece};
use crate::openai::{ApiError, Usage};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// A comment line is sent when nothing else was for this long, so that proxies keep a waiting connection open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How an endpoint writes its chunks, as JSON texts.
pub(super) trait Chunks: Send + Unpin + 'static {
    /// Before the first piece.
    fn opening(&self) -> Vec<String>;
    /// A piece of a choice.
    fn piece(&self, piece: Piece) -> Vec<String>;
    /// After the last piece, where usage was asked for.
    fn usage(&self, usage: Usage) -> Option<String>;
}

/// The streamed answer.
pub(super) fn respond(generation: Generation, chunks: impl Chunks) -> Response {
    let waiting = chunks.opening().into();
    let span = tracing::Span::current();
    let events = EventStream { generation: Some(generation), chunks, waiting, span };
    Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL).text("waiting"))
        .into_response()
}

struct EventStream<C> {
    /// `None` once everything is in `waiting`.
    generation: Option<Generation>,
    chunks: C,
    waiting: VecDeque<String>,
    /// The request's: the stream is polled after its handler has returned, and its log lines need the id.
    span: tracing::Span,
}

impl<C: Chunks> Stream for EventStream<C> {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let _entered = this.span.enter();
        loop {
            if let Some(text) = this.waiting.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(text))));
            }
            let Some(generation) = &mut this.generation else { return Poll::Ready(None) };
            match ready!(generation.poll_next_unpin(context)) {
                Some(Ok(piece)) => this.waiting.extend(this.chunks.piece(piece)),
                Some(Err(error)) => {
                    tracing::warn!(%error, "stream failed");
                    this.waiting.push_back(ApiError::from(error).to_json());
                    this.generation = None;
                }
                None => {
                    let usage = Usage::new(generation.prompt_tokens(), generation.completion_tokens());
                    this.waiting.extend(this.chunks.usage(usage));
                    this.waiting.push_back("[DONE]".to_owned());
                    this.generation = None;
                }
            }
        }
    }
}

/// A chunk's JSON text.
pub(super) fn text(chunk: &impl serde::Serialize) -> String {
    // Strings, finite numbers and nulls always serialize.
    serde_json::to_string(chunk).unwrap_or_default()
}

/// A log probability as JSON can hold it: minus infinity becomes OpenAI's stand-in for "impossible".
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
