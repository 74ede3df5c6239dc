//! One choice's tokens on their way to text: detokenizing, stop strings, and which tokens belong to the text sent.
//! Pure: takes tokens, returns pieces.

use super::GenerationRequest;
use crate::prompt::detokenizer::IncrementalDetokenizer;
use crate::prompt::stop::{Released, StopMatcher};
use shared::ids::TokenId;
use shared::ipc::message::{FinishReason, TokenLogprobs};
use shared::tokenizer::{SpecialTokens, Tokenizer};
use std::collections::VecDeque;
use std::sync::Arc;

/// What is new of one choice.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Prompt number × n + choice number.
    pub choice: u32,
    /// Whole characters, safe to send.
    pub text: String,
    /// Tokens whose text is now sent whole; empty unless log probabilities were asked for.
    pub tokens: Vec<ScoredToken>,
    /// Tokens the worker emitted for this piece, stop tokens included.
    pub token_count: u64,
    /// Set in a choice's last piece.
    pub end: Option<ChoiceEnd>,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChoiceEnd {
    /// A stop token or stop string.
    Stop,
    /// No tokens left to make.
    Length,
}

/// A token with its log probability and alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Most likely first.
    pub top: Vec<(Vec<u8>, f32)>,
    /// Characters of the choice's text before it.
    pub text_offset: u64,
}

/// A token waiting until its text is released.
#[derive(Debug)]
struct Pending {
    start_bytes: usize,
    end_bytes: usize,
    token: ScoredToken,
}

pub(super) struct Choice {
    index: u32,
    tokenizer: Arc<Tokenizer>,
    /// `None` once finished.
    detokenizer: Option<IncrementalDetokenizer>,
    stop: StopMatcher,
    stop_tokens: Vec<TokenId>,
    pending: VecDeque<Pending>,
    /// Text made so far.
    made_bytes: usize,
    made_chars: u64,
    /// Of it, released.
    released_bytes: usize,
    ended_by_token: bool,
}

impl Choice {
    pub(super) fn new(
        index: u32,
        prompt: &[TokenId],
        tokenizer: &Arc<Tokenizer>,
        request: &GenerationRequest,
    ) -> Self {
        let detokenizer = IncrementalDetokenizer::after(prompt, Arc::clone(tokenizer), SpecialTokens::Skip);
        Self {
            index,
            detokenizer: Some(detokenizer),
            tokenizer: Arc::clone(tokenizer),
            stop: StopMatcher::new(&request.stop),
            stop_tokens: request.stop_tokens.clone(),
            pending: VecDeque::new(),
            made_bytes: 0,
            made_chars: 0,
            released_bytes: 0,
            ended_by_token: false,
        }
    }

    /// Takes the next token. A piece with an end was cut by a stop string.
    pub(super) fn token(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>) -> Piece {
        if self.stop_tokens.contains(&token) {
            // Ends the choice with the `Finished` that follows; no part of its text.
            self.ended_by_token = true;
            return self.piece(String::new(), 1, None);
        }
        let text_offset = self.made_chars;
        let text = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(token)).unwrap_or_default();
        let start_bytes = self.made_bytes;
        self.made_bytes += text.len();
        self.made_chars += text.chars().count() as u64;
        if let Some(logprobs) = logprobs {
            let token = self.scored(token, &logprobs, text_offset);
            self.pending.push_back(Pending { start_bytes, end_bytes: self.made_bytes, token });
        }
        match self.stop.push(&text) {
            Released::Text(text) => self.piece(text, 1, None),
            Released::Stopped(text) => self.piece(text, 1, Some(ChoiceEnd::Stop)),
        }
    }

    /// The worker says it is over: what was withheld is released.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Piece {
        let rest = self.detokenizer.take().map(IncrementalDetokenizer::finish).unwrap_or_default();
        self.made_bytes += rest.len();
        if let Some(last) = self.pending.back_mut() {
            last.end_bytes = self.made_bytes;
        }
        match self.stop.push(&rest) {
            Released::Text(mut text) => {
                text.push_str(&self.stop.finish());
                let by_token = self.ended_by_token || reason == FinishReason::Stop;
                self.piece(text, 0, Some(if by_token { ChoiceEnd::Stop } else { ChoiceEnd::Length }))
            }
            Released::Stopped(text) => self.piece(text, 0, Some(ChoiceEnd::Stop)),
        }
    }

    fn piece(&mut self, text: String, token_count: u64, end: Option<ChoiceEnd>) -> Piece {
        self.released_bytes += text.len();
        let released = self.released_bytes;
        // At the end a token cut by a stop string still counts, as its first characters were sent.
        let belongs = |pending: &Pending| match end {
            None => pending.end_bytes <= released,
            Some(_) => pending.start_bytes < released || pending.end_bytes <= released,
        };
        let mut tokens = Vec::new();
        while self.pending.front().is_some_and(belongs) {
            tokens.extend(self.pending.pop_front().map(|pending| pending.token));
        }
        Piece { choice: self.index, text, tokens, token_count, end }
    }

    fn scored(&self, token: TokenId, logprobs: &TokenLogprobs, text_offset: u64) -> ScoredToken {
        let bytes =
            |token| self.tokenizer.token_bytes(token, SpecialTokens::Render).unwrap_or_default().to_vec();
        ScoredToken {
            bytes: bytes(token),
            logprob: logprobs.logprob,
            top: logprobs.top.iter().map(|&(token, logprob)| (bytes(token), logprob)).collect(),
            text_offset,
        }
    }
}
