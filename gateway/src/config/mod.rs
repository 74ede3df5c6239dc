//! Configuration of the server: command line over environment over defaults, checked into a [`ServeConfig`].
//!
//! [`ServeConfig::resolve`] has no side effects and reads nothing by itself: flags, variables and facts about the host
//! come in as arguments, so tests inject them. Whether files exist is found out by whoever opens them. The settings
//! and their defaults are the table in [`settings`]; `.env.example` and the help texts are held against it by tests.

mod env_file;
mod parse;
mod settings;

pub use env_file::{EnvFile, EnvFileError};
pub use settings::{OTHER_VARIABLES, Setting, SettingName, setting, settings};

use crate::rate_limit::RateLimits;
use crate::secret::Secret;
use parse::Value;
use shared::error::ExitCode;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin} is `{value}`: {reason}")]
pub struct ConfigError {
    /// Flag or variable.
    pub origin: String,
    /// What it holds; secrets are left out.
    pub value: String,
    /// What is wrong and what to use.
    pub reason: String,
    from_flag: bool,
}

impl ConfigError {
    /// Wrong flags are usage errors, wrong variables configuration errors.
    pub fn exit_code(&self) -> ExitCode {
        if self.from_flag { ExitCode::Usage } else { ExitCode::Configuration }
    }
}

/// What a worker computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// An AMD GPU.
    Hip,
}

impl Device {
    /// As the worker's command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Hip => "hip",
        }
    }
}

/// Which processors the workers compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerCpus {
    /// Several workers on a CPU get an equal share each.
    Auto,
    /// Every one may use all.
    Off,
    /// One list for each worker.
    Lists(Vec<String>),
}

/// Everything `rocmforge serve` needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// The GGUF file; without one, the embedded demo model.
    pub model: Option<PathBuf>,
    /// What requests name in `model`; without one, the file's name.
    pub alias: Option<String>,
    /// For every worker.
    pub device: Device,
    /// Worker processes.
    pub workers: usize,
    /// Threads of each worker.
    pub threads: usize,
    /// Positions of a sequence; without it, the worker decides.
    pub context_tokens: Option<u32>,
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 lets the system pick.
    pub port: u16,
    /// Keys of which each request must carry one; none asks for none.
    pub api_keys: Vec<Secret>,
    /// File with further keys, one a line.
    pub api_key_file: Option<PathBuf>,
    /// Origins that browsers may call from; `*` allows every one.
    pub cors_origins: Vec<String>,
    /// From a request's submission to its last token.
    pub request_timeout: Duration,
    /// How long running requests may finish at shutdown.
    pub grace: Duration,
    /// Longest request body.
    pub body_bytes_max: usize,
    /// Most open connections.
    pub connections_max: usize,
    /// Most requests waiting for a worker.
    pub queue_requests_max: usize,
    /// Most tokens (prompt and largest output) of these.
    pub queue_tokens_max: u64,
    /// Bytes of request bodies held at once, in sum.
    pub body_bytes_total_max: usize,
    /// Longest wait for a request's headers, and for its body.
    pub read_timeout: Duration,
    /// Longest a client may take nothing of its answer.
    pub write_timeout: Duration,
    /// Of each key that has none of its own.
    pub rate_limits: RateLimits,
    /// Sockets of workers that run by themselves; with any, no other worker is started.
    pub attached: Vec<PathBuf>,
    /// How long a worker may give no answer or make no progress.
    pub hang_timeout: Duration,
    /// Processors of each worker.
    pub worker_cpus: WorkerCpus,
    /// Key of the operator's routes.
    pub admin_key: Option<Secret>,
    /// The worker's executable.
    pub worker_program: PathBuf,
}

/// What configuration depends on besides flags.
pub struct Surroundings<'a> {
    /// The value of an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Physical cores of the host.
    pub cores: usize,
    /// Path of the running executable.
    pub executable: Option<PathBuf>,
}

/// Name of the worker's executable, looked for beside our own.
pub const WORKER_PROGRAM_NAME: &str = "rocmforge-worker";
/// Variable that names the worker's executable instead.
pub const WORKER_PROGRAM_VARIABLE: &str = "ROCMFORGE_WORKER_BIN";
/// Further variable with API keys, separated by commas.
pub const API_KEYS_VARIABLE: &str = "ROCMFORGE_API_KEYS";
/// Variable with the key of the operator's routes.
pub const ADMIN_KEY_VARIABLE: &str = "ROCMFORGE_ADMIN_KEY";

impl ServeConfig {
    /// Checks flags (as given by `flag`) and the variables of `surroundings`.
    pub fn resolve(
        flag: &dyn Fn(SettingName) -> Vec<String>,
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, ConfigError> {
        let read = |name| Value::read(name, flag, surroundings.variable);
        let workers = read(SettingName::Workers).number(1, 256)?;
        let attached = read(SettingName::Attach).paths()?;
        let admin_key = (surroundings.variable)(ADMIN_KEY_VARIABLE).filter(|key| !key.is_empty());
        let admin_key = admin_key.map(|key| key_of_variable(ADMIN_KEY_VARIABLE, &key)).transpose()?;
        let threads = match read(SettingName::Threads) {
            Value { text: None, .. } => (surroundings.cores / workers).max(1),
            value => value.number(1, 1024)?,
        };
        let context_tokens = match read(SettingName::CtxSize) {
            Value { text: None, .. } => None,
            value => Some(value.number(16, 16 << 20)? as u32),
        };
        let model = read(SettingName::Model).optional_path()?;
        let alias = read(SettingName::Alias).optional_word()?;
        Ok(Self {
            model,
            alias,
            device: read(SettingName::Device).device()?,
            workers,
            threads,
            context_tokens,
            host: read(SettingName::Host).address()?,
            port: read(SettingName::Port).number(0, 65_535)? as u16,
            api_keys: api_keys(flag, surroundings)?,
            api_key_file: read(SettingName::ApiKeyFile).optional_path()?,
            cors_origins: read(SettingName::CorsOrigin).origins()?,
            request_timeout: read(SettingName::RequestTimeout).seconds(1.0, 86_400.0)?,
            grace: read(SettingName::Grace).seconds(0.0, 3600.0)?,
            body_bytes_max: read(SettingName::MaxBody).number(1, 1024)? << 20,
            connections_max: read(SettingName::MaxConnections).number(1, 1_000_000)?,
            queue_requests_max: read(SettingName::MaxQueue).number(1, 1_000_000)?,
            queue_tokens_max: read(SettingName::MaxQueueTokens).number(1, 1_000_000_000)? as u64,
            body_bytes_total_max: read(SettingName::MaxBodyTotal).number(1, 1 << 20)? << 20,
            read_timeout: read(SettingName::ReadTimeout).seconds(0.1, 3600.0)?,
            write_timeout: read(SettingName::WriteTimeout).seconds(0.1, 3600.0)?,
            rate_limits: RateLimits {
                requests_per_minute: read(SettingName::RateLimitRpm).limit()?,
                tokens_per_minute: read(SettingName::RateLimitTpm).limit()?,
            },
            attached,
            hang_timeout: read(SettingName::HangTimeout).seconds(0.5, 3600.0)?,
            worker_cpus: read(SettingName::WorkerCpus).worker_cpus(workers)?,
            admin_key,
            worker_program: worker_program(surroundings.variable, surroundings.executable.as_deref()),
        })
    }
}

/// Keys of the flag, else of both variables.
fn api_keys(
    flag: &dyn Fn(SettingName) -> Vec<String>,
    surroundings: &Surroundings<'_>,
) -> Result<Vec<Secret>, ConfigError> {
    let value = Value::read(SettingName::ApiKey, flag, surroundings.variable);
    let mut keys = value.keys()?;
    if !value.from_flag {
        let several = (surroundings.variable)(API_KEYS_VARIABLE).unwrap_or_default();
        for key in several.split(',').map(str::trim).filter(|key| !key.is_empty()) {
            keys.push(key_of_variable(API_KEYS_VARIABLE, key)?);
        }
    }
    Ok(keys)
}

/// A key that a header can carry: with anything else in it, such as the line break at the end of a mounted file, nobody
/// would ever be let in.
fn key_of_variable(variable: &str, key: &str) -> Result<Secret, ConfigError> {
    if key.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(Secret::new(key));
    }
    Err(ConfigError {
        origin: variable.to_owned(),
        value: "(hidden)".to_owned(),
        reason: "use visible ASCII characters without spaces".to_owned(),
        from_flag: false,
    })
}

/// The worker's executable: the one the variable names, else the sibling of `executable`, which is our own path.
pub fn worker_program(variable: &dyn Fn(&str) -> Option<String>, executable: Option<&Path>) -> PathBuf {
    match variable(WORKER_PROGRAM_VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => executable.unwrap_or(Path::new("")).with_file_name(WORKER_PROGRAM_NAME),
    }
}

#[cfg(test)]
mod tests;
