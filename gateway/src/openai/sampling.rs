//! The fields that completions and chat completions have in common: how tokens are chosen and when they end.

use super::error::ApiError;
use super::fields::{Fields, integer, refuse, show};
use super::model::StreamOptions;
use crate::prompt::stop::{STOP_BYTES_MAX, STOP_STRINGS_MAX};
use serde_json::Value;
use shared::ids::TokenId;
use shared::sampling::{LOGIT_BIAS_ENTRIES_MAX, SamplingParams, TEMPERATURE_MAX};

/// Most choices per prompt (OpenAI's limit).
pub const CHOICES_MAX: i64 = 128;

/// The common fields, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationFields {
    /// Everything but the seed, which is [`Self::seed`] where the request names one.
    pub sampling: SamplingParams,
    /// The seed asked for.
    pub seed: Option<u64>,
    /// Choices per prompt.
    pub choices: u32,
    /// Strings that end the output.
    pub stop: Vec<String>,
    /// Tokens before which no stop token is drawn.
    pub min_tokens: u32,
    /// Whether the model's own end tokens end the output.
    pub ignore_eos: bool,
    /// Rank asked for, where one is: smaller is served first (vLLM's field).
    pub priority: Option<i32>,
    /// How the answer is delivered.
    pub stream: StreamOptions,
}

impl GenerationFields {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let default = SamplingParams::default();
        let fraction =
            |name, default: f32| fields.number(name, 0.0..=1.0).map(|found| found.unwrap_or(default));
        let penalty = |name| fields.number(name, -2.0..=2.0).map(Option::unwrap_or_default);
        let sampling = SamplingParams {
            temperature: fields.number("temperature", 0.0..=TEMPERATURE_MAX)?.unwrap_or(default.temperature),
            top_k: top_k(fields)?,
            top_p: fraction("top_p", default.top_p)?,
            min_p: fraction("min_p", default.min_p)?,
            typical_p: fraction("typical_p", default.typical_p)?,
            repetition_penalty: repetition_penalty(fields)?.unwrap_or(default.repetition_penalty),
            presence_penalty: penalty("presence_penalty")?,
            frequency_penalty: penalty("frequency_penalty")?,
            logit_bias: logit_bias(fields)?,
            seed: 0,
            logprobs: None,
        };
        Ok(Self {
            sampling,
            seed: seed(fields)?,
            choices: fields.integer("n", 1..=CHOICES_MAX)?.unwrap_or(1) as u32,
            stop: stop(fields)?,
            min_tokens: fields.integer("min_tokens", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            priority: fields
                .integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?
                .map(|priority| priority as i32),
            stream: stream(fields)?,
        })
    }
}

/// llama.cpp takes 0 and vLLM -1 for "all tokens".
fn top_k(fields: &Fields<'_>) -> Result<u32, ApiError> {
    Ok(fields.integer("top_k", -1..=i64::from(i32::MAX))?.unwrap_or(0).max(0) as u32)
}

/// vLLM's name, or llama.cpp's `repeat_penalty`.
fn repetition_penalty(fields: &Fields<'_>) -> Result<Option<f32>, ApiError> {
    let range = 0.01..=100.0;
    let llama_cpp = fields.number("repeat_penalty", range.clone())?;
    Ok(fields.number("repetition_penalty", range)?.or(llama_cpp))
}

/// Any 64-bit number; negative ones are seeds like others.
fn seed(fields: &Fields<'_>) -> Result<Option<u64>, ApiError> {
    if let Some(seed) = fields.get("seed").and_then(Value::as_u64) {
        return Ok(Some(seed));
    }
    Ok(fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned))
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let Some(value) = fields.get("stop") else { return Ok(Vec::new()) };
    let path = fields.path("stop");
    let items: &[Value] = match value {
        Value::String(_) => std::slice::from_ref(value),
        Value::Array(items) => items,
        other => return Err(refuse(path, show(other), "a string or an array of strings")),
    };
    if items.len() > STOP_STRINGS_MAX {
        let allowed = format!("an array of at most {STOP_STRINGS_MAX} strings");
        return Err(refuse(path, format!("an array of {}", items.len()), allowed));
    }
    let mut stops = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        match item {
            Value::String(text) if text.len() <= STOP_BYTES_MAX => stops.push(text.clone()),
            Value::String(text) => {
                let allowed = format!("at most {STOP_BYTES_MAX} bytes long");
                return Err(refuse(
                    format!("{path}[{index}]"),
                    format!("{} bytes long", text.len()),
                    allowed,
                ));
            }
            other => return Err(refuse(format!("{path}[{index}]"), show(other), "a string")),
        }
    }
    stops.retain(|stop| !stop.is_empty());
    Ok(stops)
}

fn logit_bias(fields: &Fields<'_>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(object) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let path = fields.path("logit_bias");
    if object.len() > LOGIT_BIAS_ENTRIES_MAX {
        let allowed = format!("an object of at most {LOGIT_BIAS_ENTRIES_MAX} entries");
        return Err(refuse(path, format!("an object of {}", object.len()), allowed));
    }
    let mut bias = Vec::with_capacity(object.len());
    for (key, value) in object {
        let Ok(token) = key.parse::<TokenId>() else {
            return Err(refuse(
                path,
                format!("keyed by `{}`", super::error::shorten(key)),
                "keyed by token ids",
            ));
        };
        match value.as_f64().map(|number| number as f32).filter(|number| (-100.0..=100.0).contains(number)) {
            Some(number) => bias.push((token, number)),
            None => return Err(refuse(format!("{path}.{token}"), show(value), "a number from -100 to 100")),
        }
    }
    Ok(bias)
}

fn stream(fields: &Fields<'_>) -> Result<StreamOptions, ApiError> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let Some(options) = fields.get("stream_options") else {
        return Ok(if stream { StreamOptions::Events } else { StreamOptions::Off });
    };
    let options = Fields::of(options, fields.path("stream_options"))?;
    if !stream {
        let message = "stream_options is set, it is only allowed with stream: true";
        return Err(ApiError::field("stream_options", message));
    }
    Ok(match options.bool("include_usage")? {
        Some(true) => StreamOptions::EventsWithUsage,
        _ => StreamOptions::Events,
    })
}

/// An array of token ids.
pub(super) fn token_ids(items: &[Value], path: &str) -> Result<Vec<TokenId>, ApiError> {
    let read = |(index, item): (usize, &Value)| {
        integer(item)
            .and_then(|id| TokenId::try_from(id).ok())
            .ok_or_else(|| refuse(format!("{path}[{index}]"), show(item), "a token id"))
    };
    items.iter().enumerate().map(read).collect()
}
