//! From a checked request to a generation under way: prompt tokens, limits, seed, submission.

use super::answer::prompt_error;
use super::{ApiState, MODEL_ID_ALWAYS};
use crate::generation::{Generation, GenerationRequest};
use crate::openai::{ApiError, ErrorKind, GenerationFields};
use crate::prompt::model::{PromptError, TextModel};
use shared::ids::TokenId;
use std::sync::Arc;

impl ApiState {
    /// Runs `make` (rendering, tokenizing) off the async threads, as many at once as configured.
    pub(super) async fn prepare<T: Send + 'static>(
        &self,
        param: &'static str,
        make: impl FnOnce(&TextModel) -> Result<T, PromptError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let internal = |_| ApiError::new(ErrorKind::Internal, "the prompt could not be prepared");
        let permit = Arc::clone(&self.preparation).acquire_owned().await.map_err(|_| internal(()))?;
        let model = Arc::clone(&self.model);
        let work = move || {
            // Held until the work is done, which goes on when the client leaves.
            let _permit = permit;
            make(&model)
        };
        let made = tokio::task::spawn_blocking(work).await.map_err(|_| internal(()))?;
        made.map_err(|error| prompt_error(&error, param))
    }

    /// Checks what depends on the model and starts the sequences.
    pub(super) fn start(
        &self,
        prompts: Vec<Vec<TokenId>>,
        max_tokens: Option<u32>,
        fields: &GenerationFields,
        param: &str,
    ) -> Result<Generation, ApiError> {
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
        let request = GenerationRequest {
            prompts,
            choices: fields.choices,
            sampling,
            max_tokens: max_tokens.unwrap_or(u32::MAX),
            context_tokens,
            min_tokens: fields.min_tokens,
            stop_tokens,
            stop: fields.stop.clone(),
            deadline: self.settings.request_timeout,
        };
        Ok(Generation::start(self.source.as_ref(), tokenizer, &request)?)
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

/// A seed for requests without one, from the operating system's generator.
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1.rotate_left(8) ^ uuid::Uuid::new_v4().as_u64_pair().0
}
