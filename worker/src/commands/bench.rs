//! `bench`: tokens per second of prefill and decode, named as llama-bench names them (`pp512`, `tg128`), and of
//! decoding several sequences at once (`tg128@8`).

use super::{AnyModel, CommandError, DeviceArgs};
use crate::backend::BLOCK_TOKENS;
use crate::batch::{Batch, Forward};
use crate::model::{self, ModelError};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Most tokens of a test: beyond any context, and times the largest batch still a u32.
const TOKENS_MAX: i64 = 1 << 20;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// GGUF file.
    #[arg(long)]
    pub model: PathBuf,
    /// Tokens of the prefill test; 0 skips it.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(..=TOKENS_MAX))]
    pub prompt: u32,
    /// Tokens each sequence generates in the decode tests; 0 skips them.
    #[arg(long = "gen", default_value_t = 128, value_parser = clap::value_parser!(u32).range(..=TOKENS_MAX))]
    pub generate: u32,
    /// Numbers of sequences decoded at once, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Vec<u32>,
    /// Times each test is run; the fastest counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// What to compute on.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
struct Measurement {
    test: String,
    tok_s: f64,
    batch: u32,
    threads: usize,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<(), CommandError> {
    let wrong = CommandError::model(&args.model);
    let opened = model::open(&args.model).map_err(&wrong)?;
    let blocks_of = |tokens: u32| tokens.div_ceil(BLOCK_TOKENS).max(1);
    let largest = args.batch.iter().copied().max().unwrap_or(1);
    let blocks = blocks_of(args.prompt).max(largest * blocks_of(args.generate));
    let kv_type = args.device.kv_type.into();
    // Asked before a pinned backend takes this thread's choice of processors.
    let threads = args.device.thread_count()?;
    let (model, _) =
        args.device.backend()?.load(&opened, blocks as usize, kv_type, &mut |_| ()).map_err(&wrong)?;
    let mut bench = Bench { model, vocab_size: opened.spec().vocab_size as u32, threads };
    let mut results = Vec::new();
    if args.prompt > 0 {
        let rate = best_of(args.repeat, || bench.prefill(args.prompt)).map_err(&wrong)?;
        results.push(bench.measurement(format!("pp{}", args.prompt), rate, 1));
    }
    for &sequences in args.batch.iter().filter(|_| args.generate > 0) {
        let rate = best_of(args.repeat, || bench.decode(args.generate, sequences)).map_err(&wrong)?;
        let name = match sequences {
            1 => format!("tg{}", args.generate),
            _ => format!("tg{}@{sequences}", args.generate),
        };
        results.push(bench.measurement(name, rate, sequences));
    }
    print(&results, args.json)
}

struct Bench {
    model: AnyModel,
    vocab_size: u32,
    threads: usize,
}

impl Bench {
    fn measurement(&self, test: String, tok_s: f64, batch: u32) -> Measurement {
        Measurement { test, tok_s, batch, threads: self.threads }
    }

    /// Some token: which one does not change the work.
    fn token(&self, index: u32) -> u32 {
        index.wrapping_mul(7919) % self.vocab_size
    }

    /// Tokens per second of one prompt computed in one pass.
    fn prefill(&mut self, tokens: u32) -> Result<f64, ModelError> {
        let prompt: Vec<u32> = (0..tokens).map(|index| self.token(index)).collect();
        let table: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS)).collect();
        let mut batch = Batch::default();
        let rows = batch.push(&prompt, 0, &table, BLOCK_TOKENS);
        batch.logit_rows.push(rows.end - 1);
        let start = Instant::now();
        self.model.forward(&batch)?;
        Ok(f64::from(tokens) / start.elapsed().as_secs_f64())
    }

    /// Tokens per second in all of `sequences` sequences decoded together from an empty context.
    fn decode(&mut self, tokens: u32, sequences: u32) -> Result<f64, ModelError> {
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        let tables: Vec<Vec<u32>> =
            (0..sequences).map(|sequence| (sequence * blocks..(sequence + 1) * blocks).collect()).collect();
        let mut batch = Batch::default();
        let start = Instant::now();
        for position in 0..tokens {
            batch.clear();
            for (sequence, table) in (0..).zip(&tables) {
                let token = self.token(position + sequence);
                let rows = batch.push(&[token], position, table, BLOCK_TOKENS);
                batch.logit_rows.push(rows.start);
            }
            self.model.forward(&batch)?;
        }
        Ok(f64::from(tokens * sequences) / start.elapsed().as_secs_f64())
    }
}

fn best_of(repeat: u32, mut test: impl FnMut() -> Result<f64, ModelError>) -> Result<f64, ModelError> {
    let mut best = 0.0f64;
    for _ in 0..repeat {
        best = best.max(test()?);
    }
    Ok(best)
}

fn print(results: &[Measurement], json: bool) -> Result<(), CommandError> {
    if json {
        let text = serde_json::to_string(results)
            .map_err(|error| CommandError::Runtime(format!("result does not encode: {error}")))?;
        println!("{text}");
        return Ok(());
    }
    println!("| {:<12} | {:>7} | {:>10} |", "test", "threads", "tok/s");
    println!("| {:-<12} | {:->7} | {:->10} |", "", "", "");
    for result in results {
        println!("| {:<12} | {:>7} | {:>10.2} |", result.test, result.threads, result.tok_s);
    }
    Ok(())
}
