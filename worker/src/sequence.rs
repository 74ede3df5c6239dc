//! One request inside the worker: its tokens, its blocks, how far it has been computed.
//!
//! Owned by the scheduler, read by the engine. What holds always: `computed < tokens.len()` (a sequence always
//! has at least one token to compute), the table covers `computed` positions, and the first `published` blocks
//! of the table are full and findable.

use crate::kv_blocks::BlockId;
use crate::sampler::{self, TokenCounts};
use crate::speculation::Drafter;
use crate::speculation::pace::Outcome;
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::message::{FinishReason, RequestLimits, Submit};
use shared::sampling::SamplingParams;

/// A request being served.
#[derive(Debug)]
pub struct Sequence {
    /// The request.
    pub id: RequestId,
    /// Which submission of it.
    pub attempt: Attempt,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When it ends.
    pub limits: RequestLimits,
    /// The history as penalties see it; empty when none is on.
    pub counts: TokenCounts,
    /// Prompt tokens found in the prefix cache when it was first admitted.
    pub cached_tokens: u32,
    tokens: Vec<TokenId>,
    drafter: Drafter,
    prompt_len: usize,
    pub(crate) table: Vec<BlockId>,
    pub(crate) computed: usize,
    pub(crate) published: usize,
    pub(crate) is_readmission: bool,
}

impl Sequence {
    /// A sequence with nothing computed.
    pub fn new(submit: Submit) -> Self {
        let counts = if sampler::needs_counts(&submit.sampling) {
            TokenCounts::new(&submit.prompt, &submit.emitted)
        } else {
            TokenCounts::default()
        };
        let prompt_len = submit.prompt.len();
        let mut tokens = submit.prompt;
        tokens.extend_from_slice(&submit.emitted);
        Self {
            id: submit.id,
            attempt: submit.attempt,
            sampling: submit.sampling,
            limits: submit.limits,
            counts,
            cached_tokens: 0,
            tokens,
            drafter: Drafter::default(),
            prompt_len,
            table: Vec::new(),
            computed: 0,
            published: 0,
            is_readmission: false,
        }
    }

    /// Prompt and emitted tokens.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The tokens it began with.
    pub fn prompt(&self) -> &[TokenId] {
        &self.tokens[..self.prompt_len]
    }

    /// Tokens emitted over all attempts: the index of the next one.
    pub fn emitted_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Blocks from position 0 on.
    pub fn table(&self) -> &[BlockId] {
        &self.table
    }

    /// Tokens not computed yet; 1 when decoding, more when prefilling.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens that may not be drawn next.
    pub fn banned(&self) -> &[TokenId] {
        if self.emitted_len() < self.limits.min_tokens as usize { &self.limits.stop_tokens } else { &[] }
    }

    /// Guesses at most `most` tokens to come after the next one to compute, as many as may still be emitted before
    /// the last, which is never computed.
    pub(crate) fn propose(&mut self, most: usize, context_tokens: usize) -> Vec<TokenId> {
        let may_emit = (self.limits.max_tokens as usize).saturating_sub(self.emitted_len());
        let room = may_emit.min(context_tokens.saturating_sub(self.tokens.len())).saturating_sub(1);
        self.drafter.propose(&self.tokens, most.min(room))
    }

    /// Takes the outcome of a guess into account.
    pub(crate) fn learn(&mut self, outcome: Outcome) {
        self.drafter.learn(outcome);
    }

    /// Appends an emitted token and says whether it was the last, given the context's size.
    pub(crate) fn push(&mut self, token: TokenId, context_tokens: usize) -> Option<FinishReason> {
        self.tokens.push(token);
        if sampler::needs_counts(&self.sampling) {
            self.counts.push(token);
        }
        self.end(context_tokens)
    }

    /// Why nothing more is to be emitted, if so. Also true of a resumed request that had just ended when its
    /// former worker died.
    pub(crate) fn end(&self, context_tokens: usize) -> Option<FinishReason> {
        let emitted = &self.tokens[self.prompt_len..];
        let is_stop = |token| self.limits.stop_tokens.contains(token);
        if emitted.len() > self.limits.min_tokens as usize && emitted.last().is_some_and(is_stop) {
            Some(FinishReason::Stop)
        } else if emitted.len() >= self.limits.max_tokens as usize || self.tokens.len() >= context_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}
