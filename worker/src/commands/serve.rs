//! `serve`: loads a model on its own thread and serves one gateway at a time over a Unix socket.

use super::{CommandError, Device, DeviceArgs, context_tokens, total_memory_bytes};
use crate::backend::BLOCK_TOKENS;
use crate::engine::{Engine, resident_bytes};
use crate::fault;
use crate::ipc_server::{self, LoadFailure, Loader};
use crate::model;
use crate::scheduler::{PrefixCache, SchedulerConfig};
use crate::speculation::Speculation;
use clap::{Args, ValueEnum};
use shared::cores::physical_cores;
use shared::error::one_line;
use shared::ipc::message::{DeviceInfo, WorkerLimits};
use shared::ipc::transport::{self, Listener};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// When tokens to come are guessed and verified together, as the command line spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SpeculationArg {
    /// While few sequences run, for those that repeat themselves. The tokens are the same.
    Auto,
    /// Never.
    Off,
}

impl From<SpeculationArg> for Speculation {
    fn from(arg: SpeculationArg) -> Self {
        match arg {
            SpeculationArg::Auto => Self::Auto,
            SpeculationArg::Off => Self::Off,
        }
    }
}

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Unix socket to listen on, in a directory of mode 0700.
    #[arg(long)]
    pub socket: PathBuf,
    /// GGUF file (any part of a split one).
    #[arg(long, env = "ROCMFORGE_GGUF")]
    pub model: PathBuf,
    /// Positions a sequence can have; default: what the model was trained for, at most 8192.
    #[arg(long, env = "ROCMFORGE_CTX_SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx_size: Option<u32>,
    /// Sequences computed at once.
    #[arg(long, env = "ROCMFORGE_SEQUENCES_MAX", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub sequences_max: u32,
    /// Requests that may wait for a place beyond these.
    #[arg(long, env = "ROCMFORGE_WAITING_MAX", default_value_t = 1024)]
    pub waiting_max: u32,
    /// Most tokens computed in one step: bounds the pause a long prompt makes in everybody's stream.
    #[arg(long, env = "ROCMFORGE_STEP_TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub step_tokens: u32,
    /// Compute every prompt as if none had been seen before.
    #[arg(long)]
    pub no_prefix_cache: bool,
    /// Speculative decoding by prompt lookup: guess that text which repeats goes on repeating. The tokens are the
    /// same either way.
    #[arg(long, value_enum, default_value = "auto", env = "ROCMFORGE_SPECULATION")]
    pub speculation: SpeculationArg,
    /// End when this process, which must be the parent, is gone. The gateway passes its own id; without it the
    /// worker outlives gateways, as under systemd.
    #[arg(long)]
    pub parent_pid: Option<i32>,
    /// What to compute on.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Runs the command until the gateway says shutdown, or SIGTERM or SIGINT comes. The requests it holds then are the
/// gateway's to hand on; the socket's file is removed.
pub fn run(args: &ServeArgs) -> Result<(), CommandError> {
    fault::install(|name| std::env::var(name).ok())
        .map_err(|error| CommandError::Configuration(error.to_string()))?;
    if let Some(parent) = args.parent_pid {
        end_with_parent(parent)?;
    }
    let device = device_info(&args.device)?;
    let (loader, loading) = ipc_server::loading();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::Runtime(format!("start the runtime: {error}")))?;
    runtime.block_on(async {
        let told_to_end = told_to_end()?;
        refuse_used_socket(&args.socket).await?;
        let listener =
            Listener::bind(&args.socket).map_err(|error| CommandError::Configuration(one_line(&error)))?;
        let engine_args = args.clone();
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || load_and_run(&engine_args, loader))
            .map_err(|error| CommandError::Runtime(format!("start the engine's thread: {error}")))?;
        let ended = ipc_server::serve(listener, device, loading, told_to_end).await;
        ended
            .map_err(|error| CommandError::Served { exit_code: error.exit_code(), message: one_line(&error) })
    })
}

/// Resolves with SIGTERM or SIGINT, which end nothing by themselves from here on.
fn told_to_end() -> Result<impl Future<Output = ()>, CommandError> {
    let listen = |kind, name: &str| {
        signal(kind).map_err(|error| CommandError::Runtime(format!("listen for {name}: {error}")))
    };
    let mut terminate = listen(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to end");
    })
}

/// Binding replaces the file of a dead process; that of a living one must stay its own.
async fn refuse_used_socket(socket: &Path) -> Result<(), CommandError> {
    let Ok(connection) = transport::connect(socket).await else { return Ok(()) };
    let by = connection.peer_pid.map(|pid| format!(" by process {pid}")).unwrap_or_default();
    Err(CommandError::Configuration(format!("socket {} is in use{by}", socket.display())))
}

/// Body of the engine's thread.
fn load_and_run(args: &ServeArgs, loader: Loader) {
    match load(args, &loader) {
        Ok((info, engine)) => loader.run(info, engine),
        Err(error) => {
            loader.fail(LoadFailure { message: one_line(&error), exit_code: error.exit_code() });
        }
    }
}

type Loaded = (shared::ipc::message::ModelInfo, Engine<super::AnyModel>);

fn load(args: &ServeArgs, loader: &Loader) -> Result<Loaded, CommandError> {
    if let Some(faults) = fault::active() {
        faults.at_load().map_err(|error| CommandError::Runtime(error.to_string()))?;
    }
    let wrong = CommandError::model(&args.model);
    let opened = model::open(&args.model).map_err(&wrong)?;
    let context = context_tokens(args.ctx_size, &opened);
    let budget = args.device.cache_budget(&opened, context);
    let kv_blocks = opened.kv_blocks(budget, context);
    let mut progress = |at: model::LoadProgress| loader.progress(at.done_bytes, at.total_bytes);
    let start = std::time::Instant::now();
    let (model, weight_bytes) =
        args.device.backend()?.load(&opened, kv_blocks, budget.kv_type, &mut progress).map_err(&wrong)?;
    tracing::info!(
        model = %args.model.display(),
        weight_bytes,
        kv_blocks,
        context_tokens = context,
        load_ms = start.elapsed().as_millis() as u64,
        "model loaded"
    );
    let config = SchedulerConfig {
        limits: WorkerLimits {
            context_tokens: context,
            sequences: args.sequences_max,
            waiting: args.waiting_max,
            // A pool past u32 would take petabytes.
            kv_blocks: u32::try_from(kv_blocks).unwrap_or(u32::MAX),
            kv_block_tokens: BLOCK_TOKENS,
        },
        step_tokens: args.step_tokens,
        vocab_size: opened.spec().vocab_size as u32,
        prefix_cache: if args.no_prefix_cache { PrefixCache::Off } else { PrefixCache::On },
        speculation: args.speculation.into(),
    };
    Ok((opened.info(weight_bytes), Engine::new(model, config, resident_bytes)))
}

/// Asks to be killed with the parent, and refuses to start when it is gone already.
fn end_with_parent(parent: i32) -> Result<(), CommandError> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|error| CommandError::Runtime(format!("ask to end with the parent: {error}")))?;
    let actual = nix::unistd::getppid().as_raw();
    if actual == parent {
        return Ok(());
    }
    Err(CommandError::Configuration(format!("--parent-pid is {parent}, but the parent is {actual}")))
}

fn device_info(args: &DeviceArgs) -> Result<DeviceInfo, CommandError> {
    if let Some((name, memory_total_bytes)) = super::gpu::info(args.device) {
        return Ok(DeviceInfo { backend: "hip".to_owned(), name, units: 1, memory_total_bytes });
    }
    let backend = match args.device {
        Device::Reference => "reference",
        Device::Auto | Device::Cpu | Device::Hip => "cpu",
    };
    Ok(DeviceInfo {
        backend: backend.to_owned(),
        name: format!("{} ({})", processor_name(), args.isa()?.name()),
        units: u32::try_from(args.thread_count()?).unwrap_or(u32::MAX),
        memory_total_bytes: total_memory_bytes(),
    })
}

/// The processor's name from /proc/cpuinfo, else its architecture and number of cores.
fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(
        || format!("{} with {} cores", std::env::consts::ARCH, physical_cores()),
        |(_, name)| name.trim().to_owned(),
    )
}
