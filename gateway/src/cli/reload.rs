//! SIGHUP: reads key file and env file again and puts in force what can change while the server runs: API keys and
//! their rate limits, the admin key, the limits of the queue, the grace at shutdown, the log level. Connections and
//! running requests notice nothing. Used by `operator`.
//!
//! What holds always: what is wrong changes nothing at all; what would need a restart is named in the log and stays as
//! it was.

use super::serve::{ServeArgs, ServeError, Sources};
use crate::api::Admin;
use crate::config::ServeConfig;
use crate::fleet::Fleet;
use crate::server::{ApiKeys, KeyRing};
use shared::error::one_line;
use shared::telemetry::{LOG_LEVEL_VARIABLE, set_log_level};
use std::time::Duration;

/// What is needed to read everything again, and where it goes.
pub(super) struct Reload {
    pub(super) args: ServeArgs,
    pub(super) config: ServeConfig,
    pub(super) keys: KeyRing,
    pub(super) admin: Admin,
    pub(super) fleet: Fleet,
}

impl Reload {
    /// How long running requests may finish in at shutdown, as last read.
    pub(super) fn grace(&self) -> Duration {
        self.config.grace
    }

    /// Reads everything again. Called on an async thread: two short files, once in a while.
    pub(super) fn run(&mut self) {
        match self.apply() {
            Ok(()) => tracing::info!("configuration reloaded"),
            Err(error) => {
                tracing::error!(error = %one_line(&error), "configuration not reloaded, the former one stays in force");
            }
        }
    }

    fn apply(&mut self) -> Result<(), ServeError> {
        let sources = Sources::read(&self.args)?;
        let config = sources.config(&self.args)?;
        let keys = read_keys(&config)?;
        if keys.is_empty() && !self.keys_are_optional() {
            return Err(ServeError::KeysGone);
        }
        // Last of what may fail, since a level is in force as soon as it is accepted.
        if let Some(level) = sources.variable(LOG_LEVEL_VARIABLE) {
            set_log_level(&level)?;
        }
        self.keys.replace(keys);
        self.admin.replace_key(config.admin_key.as_ref());
        self.fleet.set_queue_limits(config.queue_requests_max, config.queue_tokens_max);
        self.name_unreloadable(&config);
        self.take_over(config);
        Ok(())
    }

    /// Whether the server began without keys; one that had some must not lose its last by a slip of the pen.
    fn keys_are_optional(&self) -> bool {
        self.config.api_keys.is_empty() && self.config.api_key_file.is_none()
    }

    /// Says which settings have changed that stay as they were.
    fn name_unreloadable(&self, new: &ServeConfig) {
        let old = &self.config;
        let differs = [
            ("model", old.model != new.model),
            ("alias", old.alias != new.alias),
            ("device", old.device != new.device),
            ("workers", old.workers != new.workers),
            ("threads", old.threads != new.threads),
            ("ctx-size", old.context_tokens != new.context_tokens),
            ("host", old.host != new.host),
            ("port", old.port != new.port),
            ("cors-origin", old.cors_origins != new.cors_origins),
            ("request-timeout", old.request_timeout != new.request_timeout),
            ("max-body", old.body_bytes_max != new.body_bytes_max),
            ("max-body-total", old.body_bytes_total_max != new.body_bytes_total_max),
            ("max-connections", old.connections_max != new.connections_max),
            ("read-timeout", old.read_timeout != new.read_timeout),
            ("write-timeout", old.write_timeout != new.write_timeout),
            ("attach", old.attached != new.attached),
            ("hang-timeout", old.hang_timeout != new.hang_timeout),
            ("worker-cpus", old.worker_cpus != new.worker_cpus),
        ];
        let settings: Vec<&str> =
            differs.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
        if !settings.is_empty() {
            tracing::warn!(?settings, "these settings changed and need a restart of the server");
        }
    }

    /// The rest keeps its old value, so that the next reload names it again.
    fn take_over(&mut self, new: ServeConfig) {
        self.config.api_keys = new.api_keys;
        self.config.api_key_file = new.api_key_file;
        self.config.admin_key = new.admin_key;
        self.config.rate_limits = new.rate_limits;
        self.config.queue_requests_max = new.queue_requests_max;
        self.config.queue_tokens_max = new.queue_tokens_max;
        self.config.grace = new.grace;
    }
}

/// The keys of settings and key file.
pub(super) fn read_keys(config: &ServeConfig) -> Result<ApiKeys, ServeError> {
    let mut keys = ApiKeys::new(&config.api_keys, config.rate_limits);
    if let Some(path) = &config.api_key_file {
        keys.add_file(path)?;
    }
    Ok(keys)
}
