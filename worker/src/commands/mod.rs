//! The worker's command line, one file per command. `serve` is what a gateway starts; the others are what
//! `rocmforge logits|bench|inspect --tensor` run, since only the worker can compute.

pub mod bench;
mod gpu;
pub mod logits;
mod npy;
mod placement;
pub mod serve;
pub mod tensor;

use crate::activity::Activity;
#[cfg(feature = "hip")]
use crate::backend::HipBackend;
use crate::backend::{BackendError, CpuBackend, KvType, ReferenceBackend};
use crate::batch::{Batch, Forward};
use crate::model::{CacheBudget, Model, ModelError, Opened};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kernels::KernelError;
use kernels::cpu::{Cpu, Isa};
use placement::{Placement, PlacementSettings, Processors};
use shared::cores::{allowed_cores, physical_cores};
use shared::error::ExitCode;
use std::path::PathBuf;
use std::sync::Arc;

/// Environment variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "ROCMFORGE_CPU_ISA";
/// Context used when neither flag nor file asks for less: bounds the cache of models trained for 128k tokens.
const CONTEXT_TOKENS_DEFAULT_MAX: u32 = 8192;
/// Sequences of full context the cache holds by default.
const CACHED_CONTEXTS_DEFAULT: u64 = 4;
/// Share of the available memory the default cache may take, as a divisor.
const CACHE_MEMORY_DIVISOR: u64 = 4;

/// `rocmforge-worker`: computes for one gateway on one device.
#[derive(Debug, Parser)]
#[command(name = "rocmforge-worker", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a gateway over a Unix socket.
    Serve(serve::ServeArgs),
    /// Write the logits of a token sequence as .npy.
    Logits(logits::LogitsArgs),
    /// Time prefill and decode.
    Bench(bench::BenchArgs),
    /// Write one tensor, dequantized to f32, as .npy.
    Tensor(tensor::TensorArgs),
}

/// Which backend computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// A GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// An AMD GPU.
    Hip,
    /// Plain arithmetic on dequantized weights: slow, for comparisons.
    #[value(hide = true)]
    Reference,
}

/// What to compute on, common to all commands that compute.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Backend to compute on.
    #[arg(long, value_enum, default_value = "auto", env = "ROCMFORGE_DEVICE")]
    pub device: Device,
    /// Compute threads; default: one per physical core.
    #[arg(long, env = "ROCMFORGE_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Pin compute threads to physical cores: off, on, or the CPUs to use, like 0-3,8.
    #[arg(long, default_value = "off", env = "ROCMFORGE_CPU_PIN")]
    pub cpu_pin: String,
    /// CPUs that compute threads are restricted and pinned to; a gateway sets it for each worker. Goes before
    /// --cpu-pin.
    #[arg(long, default_value = "", hide_default_value = true, env = "ROCMFORGE_CPU_LIST")]
    pub cpu_list: String,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value = "f16", env = "ROCMFORGE_KV_TYPE")]
    pub kv_type: KvTypeArg,
    /// Memory for the KV cache in MiB; default: four full contexts, at most a quarter of the free memory.
    #[arg(long, env = "ROCMFORGE_KV_CACHE_MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub kv_cache_mib: Option<u32>,
}

/// Element type of the KV cache as the command line spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvTypeArg {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 1 byte and a share of a scale.
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<KvTypeArg> for KvType {
    fn from(arg: KvTypeArg) -> Self {
        match arg {
            KvTypeArg::F32 => Self::F32,
            KvTypeArg::F16 => Self::F16,
            KvTypeArg::Q8_0 => Self::Q8_0,
        }
    }
}

/// Why a command failed; decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The model file.
    #[error("{path}: {source}", path = path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelError,
    },
    /// A flag or variable.
    #[error("{0}")]
    Configuration(String),
    /// Something failed while running.
    #[error("{0}")]
    Runtime(String),
    /// Serving ended with an error that brings its own exit code.
    #[error("{message}")]
    Served {
        /// What the process returns.
        exit_code: ExitCode,
        /// One line.
        message: String,
    },
}

impl CommandError {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Model { source: ModelError::Backend(BackendError::Kernel { .. }), .. } => ExitCode::Runtime,
            #[cfg(feature = "hip")]
            Self::Model { source: ModelError::Backend(BackendError::Hip { .. }), .. } => ExitCode::Runtime,
            Self::Model { .. } => ExitCode::ModelFile,
            Self::Configuration(_) => ExitCode::Configuration,
            Self::Runtime(_) => ExitCode::Runtime,
            Self::Served { exit_code, .. } => *exit_code,
        }
    }

    fn model(path: &std::path::Path) -> impl Fn(ModelError) -> Self {
        let path = path.to_owned();
        move |source| Self::Model { path: path.clone(), source }
    }
}

/// A model on whichever backend was chosen.
pub type AnyModel = Box<dyn Forward<Error = ModelError> + Send>;

/// A backend ready to be given a model.
pub enum AnyBackend {
    /// The CPU.
    Cpu(CpuBackend),
    /// A GPU.
    #[cfg(feature = "hip")]
    Hip(Box<HipBackend>),
    /// The oracle.
    Reference(ReferenceBackend),
}

impl DeviceArgs {
    /// Threads to compute with.
    pub fn thread_count(&self) -> Result<usize, CommandError> {
        Ok(self.placement()?.threads())
    }

    fn placement(&self) -> Result<Placement, CommandError> {
        let threads = self.threads.map(usize::from);
        let settings = PlacementSettings { threads, pin: &self.cpu_pin, list: &self.cpu_list };
        let processors = Processors { cores: allowed_cores(), threads: physical_cores() };
        Placement::choose(settings, &processors)
    }

    /// The instruction set: the one `ROCMFORGE_CPU_ISA` names, or the best this processor has.
    pub fn isa(&self) -> Result<Isa, CommandError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Isa::parse(&name)
                .map_err(|error| CommandError::Configuration(format!("{ISA_VARIABLE}: {error}"))),
            _ => {
                let best = Isa::detect();
                if let Some(reason) = Isa::amx_refusal() {
                    tracing::warn!(%reason, isa = %best, "amx is not used");
                }
                Ok(best)
            }
        }
    }

    /// Makes the backend.
    pub fn backend(&self) -> Result<AnyBackend, CommandError> {
        if let Some(backend) = gpu::open(self.device)? {
            return Ok(backend);
        }
        match self.device {
            Device::Auto | Device::Cpu | Device::Hip => {
                let isa = self.isa()?;
                let cpu = match self.placement()? {
                    Placement::Free(threads) => Cpu::new(isa, threads),
                    Placement::Pinned(cpus) => Cpu::pinned(isa, &cpus),
                };
                let cpu = cpu.map_err(|error: KernelError| CommandError::Configuration(error.to_string()))?;
                Ok(AnyBackend::Cpu(CpuBackend::new(cpu)))
            }
            Device::Reference => Ok(AnyBackend::Reference(ReferenceBackend)),
        }
    }

    /// Size of the KV cache for sequences of `context_tokens`.
    pub fn cache_budget(&self, opened: &Opened, context_tokens: u32) -> CacheBudget {
        let kv_type = self.kv_type.into();
        let bytes = self.kv_cache_mib.map_or_else(
            || {
                let block_bytes = opened.spec().cache_shape(1, kv_type).block_bytes() as u64;
                let wanted = opened.kv_blocks(CacheBudget { kv_type, bytes: 0 }, context_tokens) as u64
                    * block_bytes
                    * CACHED_CONTEXTS_DEFAULT;
                let available = gpu::cache_bytes(self.device, opened)
                    .unwrap_or_else(|| available_memory_bytes() / CACHE_MEMORY_DIVISOR);
                wanted.min(available)
            },
            |mib| u64::from(mib) << 20,
        );
        CacheBudget { kv_type, bytes }
    }
}

/// Context to serve: what was asked for, else what the model was trained for up to a bound.
pub fn context_tokens(asked: Option<u32>, opened: &Opened) -> u32 {
    asked.unwrap_or_else(|| opened.spec().context_train.min(CONTEXT_TOKENS_DEFAULT_MAX))
}

impl AnyBackend {
    /// Loads `opened` with a cache of `kv_blocks` blocks.
    pub fn load(
        self,
        opened: &Opened,
        kv_blocks: usize,
        kv_type: KvType,
        progress: &mut dyn FnMut(crate::model::LoadProgress),
    ) -> Result<(AnyModel, u64), ModelError> {
        match self {
            #[cfg(feature = "hip")]
            Self::Hip(backend) => boxed(opened.load(*backend, kv_blocks, kv_type, progress)?),
            Self::Cpu(backend) => boxed(opened.load(backend, kv_blocks, kv_type, progress)?),
            Self::Reference(backend) => boxed(opened.load(backend, kv_blocks, kv_type, progress)?),
        }
    }
}

fn boxed<B>(model: Model<B>) -> Result<(AnyModel, u64), ModelError>
where
    B: crate::backend::Backend + Send + 'static,
    Model<B>: Send,
{
    let weight_bytes = model.weight_bytes();
    Ok((Box::new(model), weight_bytes))
}

impl<E> Forward for Box<dyn Forward<Error = E> + Send>
where
    E: std::error::Error + Send + Sync + 'static,
{
    type Error = E;

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], E> {
        (**self).forward(batch)
    }

    fn vocab_size(&self) -> usize {
        (**self).vocab_size()
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), E> {
        (**self).copy_block(from, to)
    }

    fn report_to(&mut self, activity: Arc<Activity>) {
        (**self).report_to(activity);
    }
}

/// Memory that can be taken without swapping: `MemAvailable` of /proc/meminfo, or the control group's limit (which
/// is what a container has) if that is less; 0 where neither can be read.
pub fn available_memory_bytes() -> u64 {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit: Option<u64> = limit.and_then(|text| text.trim().parse().ok());
    meminfo_bytes("MemAvailable:").min(limit.unwrap_or(u64::MAX))
}

/// The host's memory, `MemTotal` of /proc/meminfo; 0 where it cannot be read.
pub fn total_memory_bytes() -> u64 {
    meminfo_bytes("MemTotal:")
}

fn meminfo_bytes(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib: Option<u64> = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0) * 1024
}
