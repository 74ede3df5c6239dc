//! One generation as the rest of the gateway sees it: what is asked, what comes back, and how it can fail.

use super::core::Core;
use crate::ledger::RequestError;
use futures_util::Stream;
use shared::ids::{RequestId, TokenId};
use shared::ipc::message::{FinishReason, RequestLimits, Timings, TokenLogprobs};
use shared::sampling::SamplingParams;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// What one choice of one prompt asks of the fleet.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// Prompt tokens; at least one.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen; validated by the caller, and again by the worker.
    pub sampling: SamplingParams,
    /// When to stop.
    pub limits: RequestLimits,
    /// From submission to the last token; past it the request fails with [`RequestError::Deadline`].
    pub deadline: Duration,
}

/// What a [`TokenStream`] yields: tokens, then exactly one of the other two.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetEvent {
    /// The next token of the output.
    Token(TokenId, Option<TokenLogprobs>),
    /// The output is complete.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Where the last attempt's time went inside the worker.
        timings: Timings,
        /// How often the request was handed to a worker.
        attempts: u32,
    },
    /// The output ends here with an error.
    Failed(RequestError),
}

/// A request's events. Dropping it before the terminal event cancels the request in its worker at once.
pub struct TokenStream {
    id: RequestId,
    events: mpsc::Receiver<FleetEvent>,
    core: Arc<Core>,
    open: bool,
}

impl TokenStream {
    pub(super) fn new(id: RequestId, events: mpsc::Receiver<FleetEvent>, core: Arc<Core>) -> Self {
        Self { id, events, core, open: true }
    }

    /// The request's id, for logs.
    pub fn id(&self) -> RequestId {
        self.id
    }
}

impl Stream for TokenStream {
    type Item = FleetEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<FleetEvent>> {
        if !self.open {
            return Poll::Ready(None);
        }
        let event = self.events.poll_recv(context);
        match &event {
            Poll::Ready(Some(FleetEvent::Token(..))) | Poll::Pending => {}
            Poll::Ready(_) => self.open = false,
        }
        event
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if self.open {
            self.core.cancel(self.id);
        }
    }
}
