//! Changes to single logits before any token is dropped: bias, penalties, tokens that may not be drawn yet.

use shared::ids::TokenId;
use shared::sampling::SamplingParams;
use std::collections::HashMap;

/// How often each token occurs in a request's history: what the penalties look at.
///
/// Holds an entry for every token of prompt and output; its value counts the output only, since presence and
/// frequency penalties concern what was emitted (as OpenAI defines them) and the repetition penalty both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    emitted: HashMap<TokenId, u32>,
}

impl TokenCounts {
    /// Counts a history whose first part is the prompt.
    pub fn new(prompt: &[TokenId], emitted: &[TokenId]) -> Self {
        let mut counts = Self { emitted: prompt.iter().map(|&token| (token, 0)).collect() };
        emitted.iter().for_each(|&token| counts.push(token));
        counts
    }

    /// Counts one more emitted token.
    pub fn push(&mut self, token: TokenId) {
        *self.emitted.entry(token).or_insert(0) += 1;
    }
}

/// The three penalties; see [`SamplingParams`] for their meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// 1 is off.
    pub repetition: f32,
    /// 0 is off.
    pub presence: f32,
    /// 0 is off.
    pub frequency: f32,
}

impl Penalties {
    /// The penalties of a request, or `None` when all are off and no history is needed.
    pub fn of(params: &SamplingParams) -> Option<Self> {
        let penalties = Self {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
        };
        let off = Self { repetition: 1.0, presence: 0.0, frequency: 0.0 };
        (penalties != off).then_some(penalties)
    }
}

/// Adds each bias to its token's logit. Tokens outside the row are skipped; the scheduler has refused them.
pub fn bias(row: &mut [f32], biases: &[(TokenId, f32)]) {
    for &(token, bias) in biases {
        if let Some(logit) = row.get_mut(token as usize) {
            *logit += bias;
        }
    }
}

/// Repetition first, then frequency and presence, as llama.cpp orders them.
pub fn penalize(row: &mut [f32], counts: &TokenCounts, penalties: Penalties) {
    for (&token, &emitted) in &counts.emitted {
        let Some(logit) = row.get_mut(token as usize) else { continue };
        *logit = if *logit <= 0.0 { *logit * penalties.repetition } else { *logit / penalties.repetition };
        if emitted > 0 {
            *logit -= emitted as f32 * penalties.frequency + penalties.presence;
        }
    }
}

/// Makes `tokens` impossible.
pub fn ban(row: &mut [f32], tokens: &[TokenId]) {
    for &token in tokens {
        if let Some(logit) = row.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_tokens_meet_the_repetition_penalty_only() {
        let counts = TokenCounts::new(&[0, 1], &[1, 2, 2]);
        let mut row = [4.0, -4.0, 4.0, 4.0];
        penalize(&mut row, &counts, Penalties { repetition: 2.0, presence: 0.5, frequency: 0.25 });
        assert_eq!(row, [2.0, -8.0 - 0.75, 2.0 - 1.0, 4.0]);
    }

    #[test]
    fn counts_grow_token_by_token_to_the_same_state() {
        let mut grown = TokenCounts::new(&[5, 6], &[7]);
        grown.push(6);
        assert_eq!(grown, TokenCounts::new(&[5, 6], &[7, 6]));
    }

    #[test]
    fn tokens_outside_the_row_are_skipped() {
        let mut row = [1.0, 2.0];
        bias(&mut row, &[(1, 1.0), (2, 9.0), (u32::MAX, 9.0)]);
        ban(&mut row, &[0, 7]);
        assert_eq!(row, [f32::NEG_INFINITY, 3.0]);
    }
}
