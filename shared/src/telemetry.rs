//! Logging: one subscriber per process, configured by environment, lines on stderr.
//!
//! `ROCMFORGE_LOG_LEVEL` takes a level or a `RUST_LOG`-style filter list, `ROCMFORGE_LOG_FORMAT` is `human` or
//! `json`. Results of commands go to stdout and never through here.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Environment variable with the level or filter list.
pub const LOG_LEVEL_VARIABLE: &str = "ROCMFORGE_LOG_LEVEL";
/// Environment variable with the line format.
pub const LOG_FORMAT_VARIABLE: &str = "ROCMFORGE_LOG_FORMAT";
/// Level without configuration.
const LOG_LEVEL_DEFAULT: &str = "warn";

/// A logging variable that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "{LOG_LEVEL_VARIABLE} is `{value}`: {reason}; use error, warn, info, debug, trace or a filter like info,gateway=debug"
    )]
    Level {
        /// The value given.
        value: String,
        /// The parser's words.
        reason: String,
    },
    /// The format is unknown.
    #[error("{LOG_FORMAT_VARIABLE} is `{value}`; use human or json")]
    Format {
        /// The value given.
        value: String,
    },
    /// A subscriber is already installed.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Installs the process's subscriber from the environment, as given by `variable` so that tests can inject one. An
/// empty variable counts as not set.
pub fn init_tracing(variable: impl Fn(&str) -> Option<String>) -> Result<(), TelemetryError> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let level = set(LOG_LEVEL_VARIABLE).unwrap_or_else(|| LOG_LEVEL_DEFAULT.to_owned());
    let filter = EnvFilter::try_new(&level)
        .map_err(|error| TelemetryError::Level { value: level.clone(), reason: error.to_string() })?;
    let format = set(LOG_FORMAT_VARIABLE).unwrap_or_else(|| "human".to_owned());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format.as_str() {
        "human" => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        "json" => builder.json().flatten_event(true).try_init(),
        _ => return Err(TelemetryError::Format { value: format }),
    };
    installed.map_err(|_| TelemetryError::AlreadySet)
}
