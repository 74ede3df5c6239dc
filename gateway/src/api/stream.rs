//! A generation as server-sent events.
//!
//! One `id` and `created` per stream. After the pieces of all choices comes the usage if asked for, then `[DONE]`.
//! A generation that fails ends with an event holding the error object, and no `[DONE]`. Every piece is an event of
//! its own; those that are there at the same time go out in one write, so that a client that lags costs less, not
//! more. Nothing is made before the connection wants it: what a client does not read stays in its bounded channel.

use crate::generation::{Generation, Piece};
use crate::openai::{ApiError, Usage};
use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use hyper::body::Frame;
use serde::Serialize;
use std::convert::Infallible;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// A comment line is sent when nothing else was for this long, so that proxies keep a waiting connection open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE: &[u8] = b": waiting\n\n";
/// Bytes after which a frame is handed over though more pieces are there: about what a socket takes at once.
const FRAME_BYTES: usize = 16 * 1024;
/// First size of a frame: one event.
const EVENT_BYTES: usize = 512;

/// How an endpoint writes its chunks.
pub(super) trait Chunks: Send + Unpin + 'static {
    /// Before the first piece.
    fn opening(&self, events: &mut Events);
    /// A piece of a choice.
    fn piece(&self, piece: Piece, events: &mut Events);
    /// After the last piece, where usage was asked for.
    fn usage(&self, usage: Usage, events: &mut Events);
}

/// The streamed answer.
pub(super) fn respond(generation: Generation, chunks: impl Chunks) -> Response {
    let mut events = Events::default();
    chunks.opening(&mut events);
    let stream = EventBody {
        generation: Some(generation),
        chunks,
        events,
        last_sent: Instant::now(),
        keep_alive: Box::pin(tokio::time::sleep(KEEP_ALIVE_INTERVAL)),
        span: tracing::Span::current(),
    };
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")], Body::new(stream)).into_response()
}

/// Events written and not yet sent.
#[derive(Default)]
pub(super) struct Events {
    bytes: Vec<u8>,
}

impl Events {
    /// An event that holds `chunk` as JSON.
    pub(super) fn chunk(&mut self, chunk: &impl Serialize) {
        self.event(|bytes| {
            // Strings, finite numbers and nulls always serialize, and a vector takes every byte.
            let _ = serde_json::to_writer(bytes, chunk);
        });
    }

    fn event(&mut self, data: impl FnOnce(&mut Vec<u8>)) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(EVENT_BYTES);
        }
        self.bytes.extend_from_slice(b"data: ");
        data(&mut self.bytes);
        self.bytes.extend_from_slice(b"\n\n");
    }
}

/// The chunk that most events are: some text of a choice and nothing else. What its serialization has around the
/// choice's number and its text is the same in all of a stream, and is made once.
pub(super) struct PlainChunk {
    parts: [Box<[u8]>; 3],
    order: Order,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    IndexFirst,
    TextFirst,
}

/// Stand-ins by which [`PlainChunk`] finds the places. No other string in a chunk is a lone control character, and no
/// other number follows the key.
pub(super) const SAMPLE_TEXT: &str = "\u{1}";
pub(super) const SAMPLE_INDEX: u32 = u32::MAX;

impl PlainChunk {
    /// Of a chunk whose text and index are the stand-ins; `None` where they are not found once each.
    pub(super) fn of(sample: &impl Serialize) -> Option<Self> {
        let sample = serde_json::to_string(sample).ok()?;
        let key = "\"index\":";
        let (text, index) = ("\"\\u0001\"", format!("{key}{SAMPLE_INDEX}"));
        let (text_at, index_at) = (sample.find(text)?, sample.find(&index)? + key.len());
        let index_end = index_at + index.len() - key.len();
        let text_end = text_at + text.len();
        let (order, cuts) = if text_at < index_at {
            (Order::TextFirst, [text_at, text_end, index_at, index_end])
        } else {
            (Order::IndexFirst, [index_at, index_end, text_at, text_end])
        };
        let part = |text: &str| text.as_bytes().into();
        let parts = [part(&sample[..cuts[0]]), part(&sample[cuts[1]..cuts[2]]), part(&sample[cuts[3]..])];
        Some(Self { parts, order })
    }

    /// Writes the event of `text` of the choice `index`.
    pub(super) fn write(&self, index: u32, text: &str, events: &mut Events) {
        let write_index = |bytes: &mut Vec<u8>| {
            let _ = write!(bytes, "{index}");
        };
        let write_text = |bytes: &mut Vec<u8>| {
            let _ = serde_json::to_writer(bytes, text);
        };
        events.event(|bytes| {
            let [head, middle, tail] = &self.parts;
            bytes.extend_from_slice(head);
            match self.order {
                Order::IndexFirst => {
                    write_index(bytes);
                    bytes.extend_from_slice(middle);
                    write_text(bytes);
                }
                Order::TextFirst => {
                    write_text(bytes);
                    bytes.extend_from_slice(middle);
                    write_index(bytes);
                }
            }
            bytes.extend_from_slice(tail);
        });
    }
}

struct EventBody<C> {
    /// `None` once everything is in `events`.
    generation: Option<Generation>,
    chunks: C,
    events: Events,
    last_sent: Instant,
    /// Looked at only when nothing else is there, and then moved to where `last_sent` wants it.
    keep_alive: Pin<Box<Sleep>>,
    /// The request's: the stream is polled after its handler has returned, and its log lines need the id.
    span: tracing::Span,
}

impl<C: Chunks> EventBody<C> {
    /// Writes what is there, up to a frame's size.
    fn collect(&mut self, context: &mut Context<'_>) {
        while self.events.bytes.len() < FRAME_BYTES {
            let Some(generation) = &mut self.generation else { return };
            match generation.poll_next_unpin(context) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(piece))) => self.chunks.piece(piece, &mut self.events),
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(%error, "stream failed");
                    let error = ApiError::from(error).to_json();
                    self.events.event(|bytes| bytes.extend_from_slice(error.as_bytes()));
                    self.generation = None;
                }
                Poll::Ready(None) => {
                    let usage = Usage::new(generation.prompt_tokens(), generation.completion_tokens());
                    self.chunks.usage(usage, &mut self.events);
                    self.events.event(|bytes| bytes.extend_from_slice(b"[DONE]"));
                    self.generation = None;
                }
            }
        }
    }

    fn is_keep_alive_due(&mut self, context: &mut Context<'_>) -> bool {
        loop {
            if self.keep_alive.as_mut().poll(context).is_pending() {
                return false;
            }
            let due = self.last_sent + KEEP_ALIVE_INTERVAL;
            if due <= Instant::now() {
                return true;
            }
            self.keep_alive.as_mut().reset(due.into());
        }
    }
}

impl<C: Chunks> hyper::body::Body for EventBody<C> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let span = this.span.clone();
        let _entered = span.enter();
        this.collect(context);
        if this.events.bytes.is_empty() {
            if this.generation.is_none() {
                return Poll::Ready(None);
            }
            if !this.is_keep_alive_due(context) {
                return Poll::Pending;
            }
            this.events.bytes.extend_from_slice(KEEP_ALIVE);
        }
        this.last_sent = Instant::now();
        let bytes = std::mem::take(&mut this.events.bytes);
        Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
    }
}

/// A log probability as JSON can hold it: minus infinity becomes OpenAI's stand-in for "impossible".
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
