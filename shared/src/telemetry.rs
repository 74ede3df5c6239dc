//! Logging: one subscriber per process, configured by environment, lines on stderr.
//!
//! `ROCMFORGE_LOG_LEVEL` takes a level or a `RUST_LOG`-style filter list, `ROCMFORGE_LOG_FORMAT` is `human` or
//! `json`. Results of commands go to stdout and never through here.

use std::io::IsTerminal;
use std::sync::OnceLock;
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
    let filter = parse(&level)?;
    let format = set(LOG_FORMAT_VARIABLE).unwrap_or_else(|| "human".to_owned());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format.as_str() {
        "human" => {
            // Last, since what can be exchanged depends on everything else.
            let builder = builder.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map(|()| keep(move |filter| handle.reload(filter).is_ok()))
        }
        "json" => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map(|()| keep(move |filter| handle.reload(filter).is_ok()))
        }
        _ => return Err(TelemetryError::Format { value: format }),
    };
    installed.map_err(|_| TelemetryError::AlreadySet)
}

/// Exchanges the level or filter list while the process runs.
pub fn set_log_level(level: &str) -> Result<(), TelemetryError> {
    let filter = parse(level)?;
    // Without a subscriber nothing is logged at any level; one that is gone belongs to a process that ends.
    let _ = EXCHANGE.get().is_some_and(|exchange| exchange(filter));
    Ok(())
}

type Exchange = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// Exchanges the installed subscriber's filter.
static EXCHANGE: OnceLock<Exchange> = OnceLock::new();

fn keep(exchange: impl Fn(EnvFilter) -> bool + Send + Sync + 'static) {
    // A second subscriber is refused before it comes to this.
    let _ = EXCHANGE.set(Box::new(exchange));
}

fn parse(level: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(level)
        .map_err(|error| TelemetryError::Level { value: level.to_owned(), reason: error.to_string() })
}
