//! One request end to end: prompts × choices go to the fleet as sequences, and come back as text in pieces.
//!
//! Called by `api`, which knows the shapes of answers; nothing here knows HTTP. A [`Generation`] yields each
//! choice's pieces in order, interleaved with other choices' as they come, and ends when all have finished or with
//! the first failure. Dropping it cancels what still runs. The text of a choice depends only on its tokens: not on
//! how they were grouped, nor on other choices.

mod choice;

pub use choice::{ChoiceEnd, Piece, ScoredToken};

use crate::fleet::{Fleet, FleetEvent, FleetSnapshot, RequestError, SubmitError, TokenRequest};
use crate::metrics;
use crate::rate_limit::Reservation;
use choice::Choice;
use futures_util::Stream;
use futures_util::stream::{BoxStream, SelectAll, StreamExt};
use shared::ids::TokenId;
use shared::ipc::message::RequestLimits;
use shared::sampling::SamplingParams;
use shared::tokenizer::Tokenizer;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// Where tokens come from: the fleet of workers, or a script in tests.
pub trait TokenSource: Send + Sync {
    /// Takes a request or says at once why not. Dropping the stream cancels the request.
    fn submit(&self, request: TokenRequest) -> Result<BoxStream<'static, FleetEvent>, SubmitError>;

    /// Says at once why not even the shortest request would be taken now, before any work is done for one.
    fn room(&self) -> Result<(), SubmitError>;

    /// The workers now; never waits.
    fn snapshot(&self) -> FleetSnapshot;
}

impl TokenSource for Fleet {
    fn submit(&self, request: TokenRequest) -> Result<BoxStream<'static, FleetEvent>, SubmitError> {
        Fleet::submit(self, request).map(StreamExt::boxed)
    }

    fn room(&self) -> Result<(), SubmitError> {
        Fleet::room(self)
    }

    fn snapshot(&self) -> FleetSnapshot {
        Fleet::snapshot(self)
    }
}

/// What one HTTP request asks for, in tokens.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// At least one, none empty.
    pub prompts: Vec<Vec<TokenId>>,
    /// Choices per prompt.
    pub choices: u32,
    /// Validated; its seed is that of every prompt's first choice.
    pub sampling: SamplingParams,
    /// Most tokens of a choice.
    pub max_tokens: u32,
    /// Positions of a sequence: prompt and output together stay within.
    pub context_tokens: u32,
    /// Tokens before which no stop token is drawn.
    pub min_tokens: u32,
    /// Tokens that end a choice, none of which appears in its text.
    pub stop_tokens: Vec<TokenId>,
    /// Strings that end a choice.
    pub stop: Vec<String>,
    /// Smaller is served first.
    pub priority: i32,
    /// From now to the last token.
    pub deadline: Duration,
}

/// A request under way: yields pieces, ends after the last choice or the first failure.
pub struct Generation {
    choices: SelectAll<ChoiceStream>,
    prompt_tokens: u64,
    completion_tokens: u64,
    started: Instant,
    previous: Option<Instant>,
    failed: bool,
    reservation: Option<Reservation>,
    _active: metrics::ActiveRequest,
}

/// Choice `choice` of a prompt has its own seed, so that choices differ; the first keeps the request's, so that
/// `n: 1` and the first of several are the same. The constant is that of SplitMix64 (Steele et al. 2014).
fn choice_seed(seed: u64, choice: u32) -> u64 {
    seed.wrapping_add(u64::from(choice).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

impl Generation {
    /// Submits every sequence, or none if one is refused.
    pub fn start(
        source: &dyn TokenSource,
        tokenizer: &Arc<Tokenizer>,
        request: &GenerationRequest,
    ) -> Result<Self, SubmitError> {
        let mut choices = SelectAll::new();
        let mut index = 0;
        for prompt in &request.prompts {
            let room = (request.context_tokens as usize).saturating_sub(prompt.len());
            let max_tokens = request.max_tokens.min(u32::try_from(room).unwrap_or(u32::MAX));
            for number in 0..request.choices {
                let sampling = SamplingParams {
                    seed: choice_seed(request.sampling.seed, number),
                    ..request.sampling.clone()
                };
                let limits = RequestLimits {
                    max_tokens,
                    min_tokens: request.min_tokens.min(max_tokens),
                    stop_tokens: request.stop_tokens.clone(),
                    priority: request.priority,
                };
                let tokens = source.submit(TokenRequest {
                    prompt: prompt.clone(),
                    sampling,
                    limits,
                    deadline: request.deadline,
                })?;
                let choice = Choice::new(index, prompt, tokenizer, request);
                choices.push(ChoiceStream { choice, tokens: Some(tokens) });
                index += 1;
            }
        }
        let prompt_tokens = request.prompts.iter().map(|prompt| prompt.len() as u64).sum();
        metrics::prompt_tokens(prompt_tokens);
        Ok(Self {
            choices,
            prompt_tokens,
            completion_tokens: 0,
            started: Instant::now(),
            previous: None,
            failed: false,
            reservation: None,
            _active: metrics::ActiveRequest::new(),
        })
    }

    /// Settles `reservation` with the tokens used once this is over, however it ends.
    #[must_use]
    pub fn charging(mut self, reservation: Reservation) -> Self {
        self.reservation = Some(reservation);
        self
    }

    /// Tokens of all prompts, each counted once.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Tokens of all choices so far.
    pub fn completion_tokens(&self) -> u64 {
        self.completion_tokens
    }

    fn record(&mut self, tokens: u64) {
        if tokens == 0 {
            return;
        }
        let now = Instant::now();
        match self.previous.replace(now) {
            None => metrics::first_token(now - self.started),
            Some(previous) => metrics::next_token(now - previous),
        }
        self.completion_tokens += tokens;
    }
}

impl Stream for Generation {
    type Item = Result<Piece, RequestError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.failed {
                return Poll::Ready(None);
            }
            match ready!(self.choices.poll_next_unpin(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => {
                    self.failed = true;
                    self.choices.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(piece)) => {
                    self.record(piece.token_count);
                    if piece.end.is_some() || !piece.text.is_empty() || !piece.tokens.is_empty() {
                        return Poll::Ready(Some(Ok(piece)));
                    }
                }
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        metrics::request_duration(self.started.elapsed());
        if let Some(reservation) = &mut self.reservation {
            reservation.used(self.prompt_tokens + self.completion_tokens);
        }
    }
}

/// One choice with its source, which is dropped (and thereby cancelled) when the choice ends.
struct ChoiceStream {
    choice: Choice,
    tokens: Option<BoxStream<'static, FleetEvent>>,
}

impl Stream for ChoiceStream {
    type Item = Result<Piece, RequestError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(tokens) = &mut self.tokens else { return Poll::Ready(None) };
        let outcome = match ready!(tokens.poll_next_unpin(context)) {
            Some(FleetEvent::Token(token, logprobs)) => Ok(self.choice.token(token, logprobs)),
            Some(FleetEvent::Finished { reason, .. }) => Ok(self.choice.finish(reason)),
            Some(FleetEvent::Failed(error)) => Err(error),
            // A stream always has a last event while its fleet lives.
            None => Err(RequestError::ShuttingDown),
        };
        if outcome.as_ref().map_or(true, |piece| piece.end.is_some()) {
            self.tokens = None;
        }
        Poll::Ready(Some(outcome))
    }
}

#[cfg(test)]
mod tests;
