//! Logits → token: the steps of [`SamplingParams`] in their documented order, and log probabilities.
//!
//! Called by the engine once per emitted token. What holds always: the result is a function of the logits, the
//! parameters, the counts and the index alone, to the bit, on every machine (P3); a NaN or an infinity in the
//! logits is an error of that request and never a panic.
//! Deliberately absent: any state from one token to the next (buffers apart), and grammars.

pub mod adjust;
mod candidates;
pub mod rng;
mod row;

pub use adjust::TokenCounts;
pub use candidates::Candidates;

use adjust::Penalties;
use shared::ids::TokenId;
use shared::ipc::message::TokenLogprobs;
use shared::sampling::SamplingParams;

/// Logits no token can be drawn from.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// The model produced something that is not a number.
    #[error("logit of token {token} is {value}")]
    NotFinite {
        /// The first such token.
        token: TokenId,
        /// Its logit.
        value: f32,
    },
    /// Every token is impossible.
    #[error("no token has a probability above 0")]
    NothingLeft,
}

/// What decides about one token, the logits apart.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The request's parameters, validated.
    pub params: &'a SamplingParams,
    /// The history, needed while [`needs_counts`] says so.
    pub counts: &'a TokenCounts,
    /// Tokens that may not be drawn: the stop tokens until `min_tokens` are emitted.
    pub banned: &'a [TokenId],
    /// Position of the token in the output.
    pub index: u64,
}

/// The token chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// As asked for by the parameters.
    pub logprobs: Option<TokenLogprobs>,
}

/// Whether a request's history has to be counted for its penalties.
pub fn needs_counts(params: &SamplingParams) -> bool {
    Penalties::of(params).is_some()
}

/// Draws tokens. Holds buffers only; one serves all requests.
#[derive(Debug, Default)]
pub struct Sampler {
    adjusted: Vec<f32>,
    candidates: Candidates,
}

impl Sampler {
    /// Chooses the token at `choice.index` from the model's `logits` [vocab], f32.
    pub fn sample(&mut self, logits: &[f32], choice: &Choice<'_>) -> Result<Sampled, SampleError> {
        let unmodified = row::arg_max(logits)?;
        let params = choice.params;
        let penalties = Penalties::of(params);
        let is_adjusted = penalties.is_some() || !params.logit_bias.is_empty() || !choice.banned.is_empty();
        let (final_row, (most_likely, max)) = if is_adjusted {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            adjust::bias(&mut self.adjusted, &params.logit_bias);
            if let Some(penalties) = penalties {
                adjust::penalize(&mut self.adjusted, choice.counts, penalties);
            }
            adjust::ban(&mut self.adjusted, choice.banned);
            (self.adjusted.as_slice(), row::arg_max(&self.adjusted)?)
        } else {
            (logits, unmodified)
        };
        let token = if params.temperature == 0.0 {
            // Rows are as long as the vocabulary, whose ids are u32.
            most_likely as TokenId
        } else {
            draw(&mut self.candidates, final_row, max, choice).ok_or(SampleError::NothingLeft)?
        };
        let logprobs = params.logprobs.map(|count| logprobs(logits, unmodified.1, token, count as usize));
        Ok(Sampled { token, logprobs })
    }
}

fn draw(candidates: &mut Candidates, row: &[f32], max: f32, choice: &Choice<'_>) -> Option<TokenId> {
    let params = choice.params;
    candidates.start(row, max);
    candidates.top_k(params.top_k as usize);
    candidates.typical_p(params.typical_p, 1);
    candidates.top_p(params.top_p, 1);
    candidates.min_p(params.min_p, 1);
    candidates.temperature(params.temperature);
    candidates.draw(rng::uniform(params.seed, choice.index))
}

fn logprobs(logits: &[f32], max: f32, token: TokenId, count: usize) -> TokenLogprobs {
    let normalizer = row::log_sum_exp(logits, max);
    let log_probability = |logit: f32| (f64::from(logit) - normalizer) as f32;
    let top =
        row::most_likely(logits, count).into_iter().map(|(id, logit)| (id, log_probability(logit))).collect();
    TokenLogprobs { logprob: log_probability(logits[token as usize]), top }
}

#[cfg(test)]
mod tests;
