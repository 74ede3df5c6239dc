//! HTTP handlers: bodies to generations, pieces to answers and events. Knows axum; called by `server`.
//!
//! A handler checks the body, makes prompt tokens on a blocking thread (bounded by [`ApiState::preparation`]), starts
//! a generation and shapes what comes back. A client that leaves drops the generation and with it the sequences.

mod admin;
mod answer;
mod body;
mod chat;
mod client;
mod completions;
mod models;
mod preparation;
mod status;
mod stream;

pub use admin::{ADMIN_ORDERS_MAX, Admin, AdminOrder, Peer};
pub use answer::error_response;
pub use body::BodyLimits;
pub use chat::chat_completions;
pub use client::{Client, TIMEOUT_HEADER};
pub use completions::completions;
pub use models::{list_models, retrieve_model};
pub use status::{health, metrics_text, ready};

use self::body::BodyReader;
use self::preparation::Pace;
use crate::generation::TokenSource;
use crate::openai::ApiError;
use crate::prompt::model::TextModel;
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Accepted for the model besides its id, for clients that have no setting for it.
pub const MODEL_ID_ALWAYS: &str = "default";
/// Context assumed when neither worker, configuration nor model file says.
const CONTEXT_TOKENS_DEFAULT: u32 = 4096;

/// What the handlers are told at start.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// What requests name in `model`.
    pub model_id: String,
    /// `--ctx-size`, where given.
    pub context_tokens: Option<u32>,
    /// From a request's submission to its last token.
    pub request_timeout: Duration,
    /// What request bodies may cost.
    pub bodies: BodyLimits,
    /// Prompts rendered and tokenized at once.
    pub preparations: usize,
}

/// What every handler works with.
pub struct ApiState {
    source: Arc<dyn TokenSource>,
    model: Arc<TextModel>,
    settings: ApiSettings,
    metrics: PrometheusHandle,
    preparation: Arc<Semaphore>,
    pace: Arc<Pace>,
    bodies: BodyReader,
    started: Instant,
    created_unix_s: u64,
}

impl ApiState {
    /// State over a source of tokens and the model whose tokens they are.
    pub fn new(
        source: Arc<dyn TokenSource>,
        model: Arc<TextModel>,
        settings: ApiSettings,
        metrics: PrometheusHandle,
    ) -> Self {
        let preparation = Arc::new(Semaphore::new(settings.preparations.max(1)));
        let bodies = BodyReader::new(settings.bodies);
        Self {
            source,
            model,
            settings,
            metrics,
            preparation,
            pace: Arc::new(Pace::new()),
            bodies,
            started: Instant::now(),
            created_unix_s: unix_s(),
        }
    }

    /// Refuses every model but the one served.
    fn check_model(&self, model: &str) -> Result<(), ApiError> {
        if model == self.settings.model_id || model == MODEL_ID_ALWAYS {
            return Ok(());
        }
        Err(ApiError::model_not_found(model))
    }

    /// Positions a sequence can have: what the workers say once they have loaded, before that what is configured.
    fn context_tokens(&self) -> u32 {
        let known = self.source.snapshot().limits().map(|limits| limits.context_tokens);
        let configured = || self.settings.context_tokens.into_iter().chain(self.model.context_tokens()).min();
        known.or_else(configured).unwrap_or(CONTEXT_TOKENS_DEFAULT)
    }
}

/// `system_fingerprint` of answers: changes with the code that makes them.
const FINGERPRINT: &str = concat!("rocmforge-", env!("CARGO_PKG_VERSION"));

/// Seconds since 1970; 0 on a clock before that.
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
