//! `rocmforge serve`: puts the parts together. Configuration, model text, socket, workers, router; then serves until
//! told to end (`operator`), drains and ends. Ends by itself only when no worker can ever serve.

use super::operator::{Operator, Signals};
use super::reload::{Reload, read_keys};
use super::startup::{self, Audience};
use crate::api::{ADMIN_ORDERS_MAX, Admin, ApiSettings, ApiState, BodyLimits};
use crate::config::{
    ADMIN_KEY_VARIABLE, API_KEYS_VARIABLE, ConfigError, Device, EnvFile, EnvFileError, ServeConfig,
    SettingName, Surroundings, WORKER_PROGRAM_VARIABLE, WorkerCpus, setting,
};
use crate::demo_model::{DEMO_MODEL_ID, DemoModel, DemoModelError};
use crate::fleet::{ExitKind, Fleet, FleetConfig, FleetError, LastExit, WorkerConfig};
use crate::generation::TokenSource;
use crate::metrics;
use crate::prompt::model::{TextModel, TextModelError};
use crate::secret::Secret;
use crate::server::{self, KeyFileError, KeyRing, Limits, RouterOptions};
use crate::supervisor::pinning;
use clap::Args;
use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal as NixSignal;
use nix::unistd::getppid;
use shared::cores::{allowed_cores, physical_cores};
use shared::error::ExitCode;
use shared::telemetry::TelemetryError;
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// How often histograms are folded into their buckets when nobody scrapes.
const METRICS_UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Flags of `serve`. Texts, so that flags and variables are checked by the same code (`config`).
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// GGUF model file; none: the built-in demo model [env: ROCMFORGE_GGUF]
    #[arg(long, value_name = "PATH")]
    model: Option<String>,
    /// Name of the model in the API; none: the file's name [env: ROCMFORGE_ALIAS]
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// What workers compute on: auto, cpu or hip [env: ROCMFORGE_DEVICE] [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Worker processes, one per device [env: ROCMFORGE_WORKERS] [default: 1]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// CPU threads of each worker; none: physical cores / workers [env: ROCMFORGE_THREADS]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Tokens of prompt and output together; none: the worker decides [env: ROCMFORGE_CTX_SIZE]
    #[arg(long, value_name = "TOKENS")]
    ctx_size: Option<String>,
    /// Address to listen on [env: ROCMFORGE_HOST] [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port to listen on; 0: a free one [env: ROCMFORGE_PORT] [default: 8000]
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// Key that requests to /v1 must carry; may be repeated [env: ROCMFORGE_API_KEY, ROCMFORGE_API_KEYS]
    #[arg(long, value_name = "KEY")]
    api_key: Vec<Secret>,
    /// File with further keys, one a line [env: ROCMFORGE_API_KEY_FILE]
    #[arg(long, value_name = "PATH")]
    api_key_file: Option<String>,
    /// Origins that browsers may call from, separated by commas; * for all [env: ROCMFORGE_CORS_ORIGIN]
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Seconds a request may take in all [env: ROCMFORGE_REQUEST_TIMEOUT] [default: 600]
    #[arg(long, value_name = "SECONDS")]
    request_timeout: Option<String>,
    /// Seconds running requests may finish in at shutdown [env: ROCMFORGE_GRACE] [default: 30]
    #[arg(long, value_name = "SECONDS")]
    grace: Option<String>,
    /// Longest request body in MiB [env: ROCMFORGE_MAX_BODY] [default: 16]
    #[arg(long, value_name = "MIB")]
    max_body: Option<String>,
    /// Most open HTTP connections [env: ROCMFORGE_MAX_CONNECTIONS] [default: 4096]
    #[arg(long, value_name = "N")]
    max_connections: Option<String>,
    /// Most requests waiting for a worker; more get 429 [env: ROCMFORGE_MAX_QUEUE] [default: 512]
    #[arg(long, value_name = "N")]
    max_queue: Option<String>,
    /// Most tokens of waiting requests; more get 429 [env: ROCMFORGE_MAX_QUEUE_TOKENS] [default: 4000000]
    #[arg(long, value_name = "TOKENS")]
    max_queue_tokens: Option<String>,
    /// Request bodies held at once in MiB; more get 503 [env: ROCMFORGE_MAX_BODY_TOTAL] [default: 256]
    #[arg(long, value_name = "MIB")]
    max_body_total: Option<String>,
    /// Seconds a request's headers may take, and its body as many again [env: ROCMFORGE_READ_TIMEOUT] [default: 60]
    #[arg(long, value_name = "SECONDS")]
    read_timeout: Option<String>,
    /// Seconds a client may take no byte of its answer [env: ROCMFORGE_WRITE_TIMEOUT] [default: 60]
    #[arg(long, value_name = "SECONDS")]
    write_timeout: Option<String>,
    /// Requests a minute of each API key; 0: no limit [env: ROCMFORGE_RATE_LIMIT_RPM] [default: 0]
    #[arg(long, value_name = "N")]
    rate_limit_rpm: Option<String>,
    /// Tokens a minute of each API key; 0: no limit [env: ROCMFORGE_RATE_LIMIT_TPM] [default: 0]
    #[arg(long, value_name = "N")]
    rate_limit_tpm: Option<String>,
    /// Sockets of workers that run by themselves, separated by commas, instead of --workers [env: ROCMFORGE_ATTACH]
    #[arg(long, value_name = "PATHS")]
    attach: Option<String>,
    /// Seconds without answer or progress after which a worker is killed [env: ROCMFORGE_HANG_TIMEOUT] [default: 30]
    #[arg(long, value_name = "SECONDS")]
    hang_timeout: Option<String>,
    /// Processors of each worker: auto, off, or lists like 0-3;4-7 [env: ROCMFORGE_WORKER_CPUS] [default: auto]
    #[arg(long, value_name = "LISTS")]
    worker_cpus: Option<String>,
    /// File of NAME=value lines in place of variables, read again at SIGHUP [env: ROCMFORGE_ENV_FILE]
    #[arg(long, value_name = "PATH")]
    env_file: Option<String>,
    /// Process that started this one for a single command: the server ends with it
    #[arg(long, value_name = "PID", hide = true)]
    parent_pid: Option<i32>,
}

impl ServeArgs {
    fn values(&self, name: SettingName) -> Vec<String> {
        let single = match name {
            SettingName::ApiKey => {
                return self.api_key.iter().map(|key| key.expose().to_owned()).collect();
            }
            SettingName::CorsOrigin => return self.cors_origin.clone(),
            SettingName::Model => &self.model,
            SettingName::Alias => &self.alias,
            SettingName::Device => &self.device,
            SettingName::Workers => &self.workers,
            SettingName::Threads => &self.threads,
            SettingName::CtxSize => &self.ctx_size,
            SettingName::Host => &self.host,
            SettingName::Port => &self.port,
            SettingName::ApiKeyFile => &self.api_key_file,
            SettingName::RequestTimeout => &self.request_timeout,
            SettingName::Grace => &self.grace,
            SettingName::MaxBody => &self.max_body,
            SettingName::MaxConnections => &self.max_connections,
            SettingName::MaxQueue => &self.max_queue,
            SettingName::MaxQueueTokens => &self.max_queue_tokens,
            SettingName::MaxBodyTotal => &self.max_body_total,
            SettingName::ReadTimeout => &self.read_timeout,
            SettingName::WriteTimeout => &self.write_timeout,
            SettingName::RateLimitRpm => &self.rate_limit_rpm,
            SettingName::RateLimitTpm => &self.rate_limit_tpm,
            SettingName::Attach => &self.attach,
            SettingName::HangTimeout => &self.hang_timeout,
            SettingName::WorkerCpus => &self.worker_cpus,
            SettingName::EnvFile => &self.env_file,
        };
        single.iter().cloned().collect()
    }
}

/// Why the server does not start or ends early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys cannot be read.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The file in place of variables cannot be read.
    #[error(transparent)]
    EnvFile(#[from] EnvFileError),
    /// The level in that file is none.
    #[error(transparent)]
    LogLevel(#[from] TelemetryError),
    /// A reload would open a server to everybody that asked for keys so far.
    #[error("there is no API key any more")]
    KeysGone,
    /// The worker's executable is not there.
    #[error(
        "worker executable {} does not exist: build it with `cargo build --release -p rocmforge-worker`, \
         or name it in {WORKER_PROGRAM_VARIABLE}",
        path.display()
    )]
    NoWorkerProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The model file is of no use.
    #[error(transparent)]
    Model(#[from] TextModelError),
    /// The demo model cannot be used.
    #[error(transparent)]
    DemoModel(#[from] DemoModelError),
    /// The socket cannot be opened.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        error: std::io::Error,
    },
    /// The workers cannot be started.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// Every worker ended for a reason that starting it again cannot mend.
    #[error("no worker can serve: {}", exit.reason())]
    Workers {
        /// How the first one ended.
        exit: LastExit,
    },
    /// The metrics recorder cannot be set up.
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
    /// Runtime, signals or stdout.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        error: std::io::Error,
    },
}

impl ServeError {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(error) => error.exit_code(),
            Self::KeyFile(_)
            | Self::EnvFile(_)
            | Self::LogLevel(_)
            | Self::KeysGone
            | Self::NoWorkerProgram { .. } => ExitCode::Configuration,
            Self::Model(_) => ExitCode::ModelFile,
            Self::DemoModel(_) | Self::Bind { .. } | Self::Fleet(_) | Self::System { .. } => {
                ExitCode::Runtime
            }
            Self::Workers { exit } => exit_code_after(exit),
            Self::Metrics(_) => ExitCode::Internal,
        }
    }
}

/// The workers' own verdict becomes the server's.
fn exit_code_after(exit: &LastExit) -> ExitCode {
    match exit.exit {
        Some(ExitKind::Code(code)) => match ExitCode::from_status(code) {
            Some(ExitCode::ModelFile) => ExitCode::ModelFile,
            // Its command line was made from our configuration.
            Some(ExitCode::Configuration | ExitCode::Usage) => ExitCode::Configuration,
            _ => ExitCode::Runtime,
        },
        Some(ExitKind::Signal(_)) => ExitCode::Runtime,
        // It could not be started at all.
        None => ExitCode::Configuration,
    }
}

/// Serves until told to stop.
pub fn run(args: &ServeArgs) -> Result<(), ServeError> {
    let audience = match args.parent_pid {
        None => Audience::Operator,
        Some(pid) => {
            set_pdeathsig(NixSignal::SIGTERM).map_err(|errno| system("death signal")(errno.into()))?;
            if getppid().as_raw() != pid {
                // It was gone before it could have taken us along.
                return Ok(());
            }
            Audience::Command
        }
    };
    let sources = Sources::read(args)?;
    let config = sources.config(args)?;
    let runtime = tokio::runtime::Runtime::new().map_err(system("async runtime"))?;
    runtime.block_on(serve(args, &sources, config, audience))
}

/// Where settings come from besides flags: the environment, and the file that fills its gaps.
#[derive(Default)]
pub(super) struct Sources {
    file: EnvFile,
}

impl Sources {
    /// Reads the file, if one is named.
    pub(super) fn read(args: &ServeArgs) -> Result<Self, EnvFileError> {
        let named = || std::env::var(setting(SettingName::EnvFile).variable).ok();
        let path = args.env_file.clone().or_else(named).filter(|path| !path.is_empty());
        let file = path.map(|path| EnvFile::read(Path::new(&path))).transpose()?;
        Ok(Self { file: file.unwrap_or_default() })
    }

    /// A variable of the environment or else of the file; an empty one counts as not set.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        let set = std::env::var(name).ok().filter(|value| !value.is_empty());
        set.or_else(|| self.file.get(name).map(str::to_owned))
    }

    /// All settings, checked.
    pub(super) fn config(&self, args: &ServeArgs) -> Result<ServeConfig, ConfigError> {
        let surroundings = Surroundings {
            variable: &|name| self.variable(name),
            cores: physical_cores(),
            executable: std::env::current_exe().ok(),
        };
        ServeConfig::resolve(&|name| args.values(name), &surroundings)
    }

    /// What workers would find in their environment if the file were part of it. Keys are not their business.
    fn for_workers(&self) -> Vec<(OsString, OsString)> {
        let is_key = |name: &str| {
            [setting(SettingName::ApiKey).variable, API_KEYS_VARIABLE, ADMIN_KEY_VARIABLE].contains(&name)
        };
        let missing = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
        let ours = self.file.iter().filter(|(name, _)| name.starts_with("ROCMFORGE_") && !is_key(name));
        ours.filter(|(name, _)| missing(name)).map(|(name, value)| (name.into(), value.into())).collect()
    }
}

async fn serve(
    args: &ServeArgs,
    sources: &Sources,
    config: ServeConfig,
    audience: Audience,
) -> Result<(), ServeError> {
    let keys = read_keys(&config)?;
    if keys.is_empty() && !config.host.is_loopback() {
        tracing::warn!(host = %config.host, "listening beyond this host without API keys");
    }
    if config.attached.is_empty() && !config.worker_program.is_file() {
        return Err(ServeError::NoWorkerProgram { path: config.worker_program });
    }
    let metrics = metrics::install()?;
    let signals = Signals::new().map_err(system("signal handlers"))?;

    let demo = match config.model {
        None => Some(DemoModel::unpack()?),
        Some(_) => None,
    };
    let model_path = demo.as_ref().map(DemoModel::path).or(config.model.clone()).unwrap_or_default();
    let model = TextModel::open(&model_path)?;

    let address = SocketAddr::new(config.host, config.port);
    let listener = server::listen(address).map_err(|error| ServeError::Bind { address, error })?;
    announce(&listener)?;
    if demo.is_some() {
        eprintln!("rocmforge: no --model given, serving the built-in demo model");
    }

    let fleet = Fleet::start(fleet_config(&config, sources, &model_path, &model))?;
    let model_id = model_id(&config);
    let settings = ApiSettings {
        model_id: model_id.clone(),
        context_tokens: config.context_tokens,
        request_timeout: config.request_timeout,
        bodies: BodyLimits {
            bytes: config.body_bytes_max,
            bytes_total: config.body_bytes_total_max,
            timeout: config.read_timeout,
        },
        preparations: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    let source: Arc<dyn TokenSource> = Arc::new(fleet.clone());
    let state = Arc::new(ApiState::new(source, Arc::new(model), settings, metrics.clone()));
    let keys = KeyRing::from(keys);
    let (orders_in, orders) = mpsc::channel(ADMIN_ORDERS_MAX);
    let admin = Admin::new(config.admin_key.as_ref(), orders_in);
    let options = RouterOptions {
        keys: keys.clone(),
        cors_origins: config.cors_origins.clone(),
        admin: Some(admin.clone()),
    };
    let router = server::router(state, &options);
    let limits = Limits {
        connections: config.connections_max,
        header_timeout: config.read_timeout,
        write_timeout: config.write_timeout,
    };

    let reload = Reload { args: args.clone(), config, keys, admin, fleet: fleet.clone() };
    let operator = Operator { signals, orders, fleet: fleet.clone(), reload };
    let upkeep = tokio::spawn(keep_metrics(metrics));
    let (mut failure, mut ending) = (None, None);
    let end = async {
        tokio::select! {
            biased;
            exit = startup::follow(&fleet, &model_id, audience) => {
                fleet.shutdown(Duration::ZERO).await;
                failure = Some(exit);
            }
            told = operator.until_ended() => ending = Some(told),
        }
    };
    let open = server::serve(listener, router, limits, end).await;
    match ending {
        Some(mut ending) => tokio::select! {
            () = open.finish(ending.until) => {}
            () = ending.signals.end() => tracing::warn!("second signal, ending at once"),
        },
        None => open.finish(Instant::now()).await,
    }
    upkeep.abort();
    failure.map_or(Ok(()), |exit| Err(ServeError::Workers { exit }))
}

/// The one line on stdout, by which scripts find the port.
fn announce(listener: &TcpListener) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(system("address of the socket"))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on http://{address}").and_then(|()| stdout.flush()).map_err(system("stdout"))
}

/// Without an alias: the file's name, which unlike `general.name` has no spaces as a rule.
fn model_id(config: &ServeConfig) -> String {
    let stem = config.model.as_deref().and_then(Path::file_stem).and_then(|stem| stem.to_str());
    config.alias.as_deref().or(stem).unwrap_or(DEMO_MODEL_ID).to_owned()
}

/// What the workers are run with, or where those that run by themselves are found.
fn fleet_config(
    config: &ServeConfig,
    sources: &Sources,
    model_path: &Path,
    model: &TextModel,
) -> FleetConfig {
    let workers = match config.attached.as_slice() {
        [] => worker_configs(config, sources, model_path),
        _ => Vec::new(),
    };
    let mut fleet = FleetConfig::new(workers);
    fleet.attached.clone_from(&config.attached);
    fleet.vocab_size = u32::try_from(model.tokenizer().vocab_len()).ok();
    fleet.timing.hang = config.hang_timeout;
    fleet.queue.requests = config.queue_requests_max;
    fleet.queue.tokens = config.queue_tokens_max;
    fleet
}

fn worker_configs(config: &ServeConfig, sources: &Sources, model: &Path) -> Vec<WorkerConfig> {
    let mut args: Vec<OsString> = vec!["--model".into(), model.into()];
    args.extend(["--device".into(), config.device.as_str().into()]);
    args.extend(["--threads".into(), config.threads.to_string().into()]);
    if let Some(tokens) = config.context_tokens {
        args.extend(["--ctx-size".into(), tokens.to_string().into()]);
    }
    let shared = sources.for_workers();
    let pinned = pinned(config, sources).into_iter().map(|own| WorkerConfig {
        program: config.worker_program.clone(),
        args: args.clone(),
        env: shared.iter().cloned().chain(own).collect(),
    });
    pinned.collect()
}

/// Variables of each worker that say what it computes on.
fn pinned(config: &ServeConfig, sources: &Sources) -> Vec<pinning::Variables> {
    let gpus = match config.device {
        Device::Cpu => 0,
        Device::Auto | Device::Hip => pinning::gpu_count(),
    };
    // Without a list of devices one worker may have the choice.
    if gpus > 0 || (config.device == Device::Hip && config.workers > 1) {
        return pinning::on_gpus(config.workers, gpus, &|name| sources.variable(name));
    }
    match &config.worker_cpus {
        WorkerCpus::Off => vec![Vec::new(); config.workers],
        WorkerCpus::Auto => pinning::on_cores(config.workers, config.threads, &allowed_cores()),
        WorkerCpus::Lists(lists) => pinning::on_lists(lists.clone()),
    }
}

async fn keep_metrics(metrics: PrometheusHandle) {
    let mut interval = tokio::time::interval(METRICS_UPKEEP_INTERVAL);
    loop {
        interval.tick().await;
        metrics.run_upkeep();
    }
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> ServeError {
    move |error| ServeError::System { what, error }
}
