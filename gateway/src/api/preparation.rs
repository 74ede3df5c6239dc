//! From a body to a generation under way: parsing, prompt tokens, limits, seed, submission.

use super::answer::prompt_error;
use super::body::HeldBody;
use super::client::Caller;
use super::{ApiState, MODEL_ID_ALWAYS};
use crate::fleet::SubmitError;
use crate::generation::{Generation, GenerationRequest};
use crate::metrics;
use crate::openai::{ApiError, ErrorKind, GenerationFields};
use crate::prompt::model::{PromptError, TextModel};
use axum::body::Body;
use shared::ids::TokenId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Longest body parsed on an async thread, in well under a millisecond. The tree of a longer one may be some twenty
/// times its size, so as few of them as prompts are made at once.
const PARSED_AT_ONCE_BYTES: usize = 64 * 1024;

/// Longest work done for one prompt on an async thread: about what handing it over costs, twice over.
const PREPARED_AT_ONCE: Duration = Duration::from_micros(200);
/// Body length below which a prompt's cost no longer falls: a template has a beginning and an end.
const SHORT_BODY_BYTES: usize = 512;

/// How long prompts took to make lately, for each byte of their bodies. Rises at once, falls slowly, so that one
/// slow template or text sends the next ones to where they disturb nobody.
pub(super) struct Pace {
    nanos_per_byte: AtomicU64,
}

impl Pace {
    /// Nothing is known: the first prompt is taken for slow.
    pub(super) fn new() -> Self {
        Self { nanos_per_byte: AtomicU64::new(Duration::from_millis(1).as_nanos() as u64) }
    }

    fn expected(&self, body_bytes: usize) -> Duration {
        let bytes = body_bytes.max(SHORT_BODY_BYTES) as u64;
        Duration::from_nanos(self.nanos_per_byte.load(Ordering::Relaxed).saturating_mul(bytes))
    }

    fn measured(&self, body_bytes: usize, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let measured = nanos / body_bytes.max(SHORT_BODY_BYTES) as u64;
        let before = self.nanos_per_byte.load(Ordering::Relaxed);
        // Two at the same time may lose one of both; the next says it again.
        self.nanos_per_byte.store(measured.max(before / 8 * 7), Ordering::Relaxed);
    }
}

/// What a checked request asks to be generated.
pub(super) struct Task<'a> {
    pub(super) prompts: Vec<Vec<TokenId>>,
    pub(super) max_tokens: Option<u32>,
    pub(super) fields: &'a GenerationFields,
    /// The field the prompts came from.
    pub(super) param: &'static str,
}

impl ApiState {
    /// Reads a body. Where no request would be taken now, that is said before any work is done for it.
    pub(super) async fn read(&self, body: Body) -> Result<HeldBody, ApiError> {
        let body = self.bodies.read(body).await?;
        self.source.room().map_err(not_taken)?;
        Ok(body)
    }

    /// Makes a request of a body.
    pub(super) async fn parse<T: Send + 'static>(
        &self,
        body: &HeldBody,
        parse: fn(&[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if body.len() <= PARSED_AT_ONCE_BYTES {
            return parse(body);
        }
        let permit = Arc::clone(&self.preparation).acquire_owned().await.map_err(|_| unprepared())?;
        let bytes = body.share();
        let work = move || {
            let _permit = permit;
            parse(&bytes)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| unprepared())?
    }

    /// Runs `make` (rendering, tokenizing) for a request of `body_bytes`: at once where prompts of this length were
    /// quick lately, else off the async threads, as many at once as configured. Going there and back costs more than
    /// a short prompt does.
    pub(super) async fn prepare<T: Send + 'static>(
        &self,
        param: &'static str,
        body_bytes: usize,
        make: impl FnOnce(&TextModel) -> Result<T, PromptError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let made = if self.pace.expected(body_bytes) <= PREPARED_AT_ONCE {
            let started = Instant::now();
            let made = make(&self.model);
            self.pace.measured(body_bytes, started.elapsed());
            made
        } else {
            let permit = Arc::clone(&self.preparation).acquire_owned().await.map_err(|_| unprepared())?;
            let (model, pace) = (Arc::clone(&self.model), Arc::clone(&self.pace));
            let work = move || {
                // Held until the work is done, which goes on when the client leaves.
                let _permit = permit;
                let started = Instant::now();
                let made = make(&model);
                pace.measured(body_bytes, started.elapsed());
                made
            };
            tokio::task::spawn_blocking(work).await.map_err(|_| unprepared())?
        };
        made.map_err(|error| prompt_error(&error, param))
    }

    /// Checks what depends on the model and on the client, and starts the sequences.
    pub(super) fn start(&self, task: Task<'_>, caller: &Caller) -> Result<Generation, ApiError> {
        let Task { prompts, max_tokens, fields, param } = task;
        let context_tokens = self.context_tokens();
        for prompt in &prompts {
            // A prompt must leave room for one token of output.
            if prompt.len() >= context_tokens as usize {
                let message = format!(
                    "this model's context holds {context_tokens} tokens, {param} has {} and no room is left for output",
                    prompt.len()
                );
                return Err(ApiError::field(param, message).code("context_length_exceeded"));
            }
        }
        let tokenizer = self.model.tokenizer();
        let vocab_size = tokenizer.vocab_len();
        if let Some((token, _)) =
            fields.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size)
        {
            let message =
                format!("logit_bias names token {token}, it must be below the vocabulary's {vocab_size}");
            return Err(ApiError::field("logit_bias", message));
        }
        let mut sampling = fields.sampling.clone();
        sampling.seed = fields.seed.unwrap_or_else(random_seed);
        // The fields were checked one by one; this holds the two lists of ranges together.
        sampling.validate().map_err(|error| ApiError::field(error.field, error.to_string()))?;
        let stop_tokens = if fields.ignore_eos { Vec::new() } else { tokenizer.end_of_generation().to_vec() };
        let prompt_tokens = prompts.iter().map(|prompt| prompt.len() as u64).sum();
        let choices = prompts.len() as u64 * u64::from(fields.choices);
        let output_tokens = u64::from(max_tokens.unwrap_or(0)) * choices;
        let deadline = caller.time_left()?;
        let reserved = caller.client.account.reserve_tokens(prompt_tokens, output_tokens, Instant::now());
        let reservation = reserved.map_err(|refusal| {
            metrics::rate_limited("tokens");
            ApiError::from(refusal)
        })?;
        let request = GenerationRequest {
            prompts,
            choices: fields.choices,
            sampling,
            max_tokens: max_tokens.unwrap_or(u32::MAX),
            context_tokens,
            min_tokens: fields.min_tokens,
            stop_tokens,
            stop: fields.stop.clone(),
            priority: caller.client.rank(fields.priority),
            deadline,
        };
        let generation = Generation::start(self.source.as_ref(), tokenizer, &request).map_err(not_taken)?;
        Ok(generation.charging(reservation))
    }

    /// Logs fields this server does not know, names only and once per request.
    pub(super) fn log_unknown(fields: &[String]) {
        if !fields.is_empty() {
            tracing::info!(?fields, "request has fields this server does not know");
        }
    }

    /// The model as answers name it: as the request did, unless by the name every model answers to.
    pub(super) fn answered_model(&self, asked: &str) -> String {
        if asked == MODEL_ID_ALWAYS { self.settings.model_id.clone() } else { asked.to_owned() }
    }
}

fn not_taken(error: SubmitError) -> ApiError {
    metrics::rejected(error.reason());
    error.into()
}

fn unprepared() -> ApiError {
    ApiError::new(ErrorKind::Internal, "the prompt could not be prepared")
}

/// A seed for requests without one, from the operating system's generator.
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1.rotate_left(8) ^ uuid::Uuid::new_v4().as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_prompt_sends_the_next_ones_away_for_a_while() {
        let pace = Pace::new();
        assert!(pace.expected(1) > PREPARED_AT_ONCE, "nothing is known yet");
        let settle = |times: usize, micros| {
            (0..times).for_each(|_| pace.measured(1000, Duration::from_micros(micros)));
        };
        settle(80, 50);
        assert!(pace.expected(1000) <= PREPARED_AT_ONCE && pace.expected(100_000) > PREPARED_AT_ONCE);
        settle(1, 5_000);
        assert!(pace.expected(1000) > PREPARED_AT_ONCE);
        settle(3, 50);
        assert!(pace.expected(1000) > PREPARED_AT_ONCE, "not forgotten at once");
        settle(40, 50);
        assert!(pace.expected(1000) <= PREPARED_AT_ONCE);
    }
}
