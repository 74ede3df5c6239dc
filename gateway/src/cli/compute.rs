//! `rocmforge logits` and `rocmforge bench`: handed to the worker binary, the only one that computes.

use super::error::CommandError;
use clap::Args;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Writes the logits of a token sequence as .npy.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// GGUF file.
    #[arg(long, env = "ROCMFORGE_GGUF")]
    pub model: std::path::PathBuf,
    /// Token ids, comma-separated.
    #[arg(long, required = true)]
    pub tokens: String,
    /// All positions instead of the last one.
    #[arg(long)]
    pub all: bool,
    /// File to write: f32 [positions, vocabulary] in NumPy's format.
    #[arg(long)]
    pub out: std::path::PathBuf,
    /// What to compute on.
    #[command(flatten)]
    pub device: ComputeArgs,
}

/// Times prefill and decode as llama-bench does.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// GGUF file.
    #[arg(long, env = "ROCMFORGE_GGUF")]
    pub model: std::path::PathBuf,
    /// Tokens of the prefill test (pp512); 0 skips it.
    #[arg(long, default_value_t = 512)]
    pub prompt: u32,
    /// Tokens each sequence generates in the decode tests (tg128); 0 skips them.
    #[arg(long = "gen", default_value_t = 128)]
    pub generate: u32,
    /// Numbers of sequences decoded at once, comma-separated (tg128@8 is eight).
    #[arg(long, default_value = "1")]
    pub batch: String,
    /// Times each test is run; the fastest counts.
    #[arg(long, default_value_t = 3)]
    pub repeat: u32,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// What to compute on.
    #[command(flatten)]
    pub device: ComputeArgs,
}

/// Device and threads.
#[derive(Debug, Args)]
pub struct ComputeArgs {
    /// auto, cpu or hip.
    #[arg(long, default_value = "auto", env = "ROCMFORGE_DEVICE")]
    pub device: String,
    /// Compute threads; default: one per physical core.
    #[arg(long, env = "ROCMFORGE_THREADS")]
    pub threads: Option<u16>,
    /// Element type of the KV cache: f16, q8_0 or f32.
    #[arg(long, default_value = "f16", env = "ROCMFORGE_KV_TYPE")]
    pub kv_type: String,
}

/// Becomes `worker logits`. Returns only when that fails.
pub fn logits(args: &LogitsArgs, worker: &Path) -> CommandError {
    let mut line = WorkerLine::new("logits");
    line.flag("--model", &args.model)
        .flag("--tokens", &args.tokens)
        .flag("--out", &args.out)
        .device(&args.device);
    if args.all {
        line.0.push("--all".into());
    }
    line.become_worker(worker)
}

/// Becomes `worker bench`. Returns only when that fails.
pub fn bench(args: &BenchArgs, worker: &Path) -> CommandError {
    let mut line = WorkerLine::new("bench");
    line.flag("--model", &args.model)
        .flag("--prompt", args.prompt.to_string())
        .flag("--gen", args.generate.to_string())
        .flag("--batch", &args.batch)
        .flag("--repeat", args.repeat.to_string())
        .device(&args.device);
    if args.json {
        line.0.push("--json".into());
    }
    line.become_worker(worker)
}

/// Becomes `worker tensor`. Returns only when that fails.
pub fn tensor(model: &Path, name: &str, out: &Path, worker: &Path) -> CommandError {
    let mut line = WorkerLine::new("tensor");
    line.flag("--model", model).flag("--name", name).flag("--out", out);
    line.become_worker(worker)
}

/// The worker's command line.
struct WorkerLine(Vec<OsString>);

impl WorkerLine {
    fn new(command: &str) -> Self {
        Self(vec![command.into()])
    }

    fn flag(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }

    fn device(&mut self, args: &ComputeArgs) -> &mut Self {
        if let Some(threads) = args.threads {
            self.flag("--threads", threads.to_string());
        }
        self.flag("--device", &args.device).flag("--kv-type", &args.kv_type)
    }

    /// Replaces this process, so that signals and exit code are the worker's own.
    fn become_worker(&self, worker: &Path) -> CommandError {
        let error = Command::new(worker).args(&self.0).exec();
        CommandError::runtime(format!("cannot run {}: {error}", worker.display()))
    }
}
