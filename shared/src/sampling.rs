//! Sampling parameters as they travel from the API to the worker's sampler, with their allowed ranges.
//!
//! The gateway validates a request's fields against the limits here before it builds the struct; the worker
//! validates again with [`SamplingParams::validate`], since a frame is input like any other.

use crate::ids::TokenId;

/// Most alternatives a request may ask for per token (OpenAI's limit for chat).
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Most entries of `logit_bias` (OpenAI documents no number; vLLM and llama.cpp accept any; ours bounds a frame).
pub const LOGIT_BIAS_ENTRIES_MAX: usize = 1024;
/// Largest temperature accepted (OpenAI's limit).
pub const TEMPERATURE_MAX: f32 = 2.0;

/// What decides the next token, given logits. Steps apply in the order: bias, penalties, stop tokens made impossible
/// until `min_tokens`, temperature 0 → greedy, else top_k, typical_p, top_p, min_p, temperature, then one draw. This
/// is llama.cpp's order: tokens are dropped by the model's own probabilities, and temperature spreads the rest.
#[derive(Debug, Clone, PartialEq, bincode::Encode, bincode::Decode)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it. Range 0..=2.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the shortest prefix of tokens, most likely first, with at least this probability. Range 0..=1, 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one. Range 0..=1, 0 keeps all.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al. 2022). Range 0..=1, 1 keeps all.
    pub typical_p: f32,
    /// Divides positive logits and multiplies negative ones of tokens seen in prompt or output. 1 is off; range >0.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens already emitted. Range -2..=2.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logits of tokens already emitted. Range -2..=2.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens. Range -100..=100 each.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the counter-based generator: token n of the output draws from `rng(seed, n)`.
    pub seed: u64,
    /// `Some(k)`: report the log probability of each token and of the k most likely alternatives.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    /// Plain sampling from the model's own distribution, as the OpenAI API defaults to.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} is {value}, allowed: {allowed}")]
pub struct SamplingError {
    /// The parameter's name as the API spells it.
    pub field: &'static str,
    /// The value given.
    pub value: String,
    /// The allowed range in words.
    pub allowed: &'static str,
}

impl SamplingParams {
    /// Greedy decoding with everything else at its default.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every parameter against its range; NaN and infinities never pass.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let within = |field, value: f32, range: std::ops::RangeInclusive<f32>, allowed| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(SamplingError { field, value: value.to_string(), allowed })
            }
        };
        within("temperature", self.temperature, 0.0..=TEMPERATURE_MAX, "0 to 2")?;
        within("top_p", self.top_p, 0.0..=1.0, "0 to 1")?;
        within("min_p", self.min_p, 0.0..=1.0, "0 to 1")?;
        within("typical_p", self.typical_p, 0.0..=1.0, "0 to 1")?;
        within("repetition_penalty", self.repetition_penalty, 0.01..=100.0, "0.01 to 100")?;
        within("presence_penalty", self.presence_penalty, -2.0..=2.0, "-2 to 2")?;
        within("frequency_penalty", self.frequency_penalty, -2.0..=2.0, "-2 to 2")?;
        for &(token, bias) in &self.logit_bias {
            if !(-100.0..=100.0).contains(&bias) {
                let value = format!("{bias} for token {token}");
                return Err(SamplingError { field: "logit_bias", value, allowed: "-100 to 100" });
            }
        }
        if self.logit_bias.len() > LOGIT_BIAS_ENTRIES_MAX {
            let value = format!("{} entries", self.logit_bias.len());
            return Err(SamplingError { field: "logit_bias", value, allowed: "at most 1024 entries" });
        }
        match self.logprobs {
            Some(k) if k > TOP_LOGPROBS_MAX => {
                Err(SamplingError { field: "top_logprobs", value: k.to_string(), allowed: "0 to 20" })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut SamplingParams), field: Option<&str>) {
        let mut params = SamplingParams::default();
        change(&mut params);
        assert_eq!(params.validate().err().map(|e| e.field), field);
    }

    #[test]
    fn every_parameter_is_held_to_its_range() {
        check(|_| (), None);
        check(|p| p.temperature = 2.5, Some("temperature"));
        check(|p| p.temperature = f32::NAN, Some("temperature"));
        check(|p| p.top_p = -0.1, Some("top_p"));
        check(|p| p.min_p = 1.5, Some("min_p"));
        check(|p| p.typical_p = f32::INFINITY, Some("typical_p"));
        check(|p| p.repetition_penalty = 0.0, Some("repetition_penalty"));
        check(|p| p.presence_penalty = 2.5, Some("presence_penalty"));
        check(|p| p.frequency_penalty = -2.5, Some("frequency_penalty"));
        check(|p| p.logit_bias = vec![(3, 101.0)], Some("logit_bias"));
        check(|p| p.logit_bias = vec![(3, 1.0); LOGIT_BIAS_ENTRIES_MAX + 1], Some("logit_bias"));
        check(|p| p.logprobs = Some(21), Some("top_logprobs"));
        check(|p| p.logprobs = Some(0), None);
    }
}
