//! `logits`: what the model says after each token of a given sequence, for comparing implementations.

use super::{CommandError, DeviceArgs};
use crate::backend::BLOCK_TOKENS;
use crate::batch::{Batch, Forward};
use crate::model;
use clap::Args;
use std::path::PathBuf;

/// Rows per pass, as the engine's default step; the result does not depend on it.
const CHUNK_TOKENS: usize = 512;

/// Arguments of `logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// GGUF file.
    #[arg(long)]
    pub model: PathBuf,
    /// Token ids, comma-separated.
    #[arg(long, value_delimiter = ',', required = true)]
    pub tokens: Vec<u32>,
    /// All positions instead of the last one.
    #[arg(long)]
    pub all: bool,
    /// File to write, f32 `[positions, vocab]` in NumPy's format.
    #[arg(long)]
    pub out: PathBuf,
    /// What to compute on.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Runs the command.
pub fn run(args: &LogitsArgs) -> Result<(), CommandError> {
    let opened = model::open(&args.model).map_err(CommandError::model(&args.model))?;
    let vocab_size = opened.spec().vocab_size;
    if let Some(token) = args.tokens.iter().find(|token| **token as usize >= vocab_size) {
        let message = format!("--tokens has {token}, the vocabulary ends at {}", vocab_size - 1);
        return Err(CommandError::Configuration(message));
    }
    let blocks = args.tokens.len().div_ceil(BLOCK_TOKENS as usize);
    let kv_type = args.device.kv_type.into();
    let (mut model, _) = args
        .device
        .backend()?
        .load(&opened, blocks, kv_type, &mut |_| ())
        .map_err(CommandError::model(&args.model))?;
    let block_table: Vec<u32> = (0..blocks as u32).collect();
    let mut logits = Vec::new();
    let mut batch = Batch::default();
    for (index, chunk) in args.tokens.chunks(CHUNK_TOKENS).enumerate() {
        batch.clear();
        let first = index * CHUNK_TOKENS;
        let rows = batch.push(chunk, first as u32, &block_table, BLOCK_TOKENS);
        let is_last = first + chunk.len() == args.tokens.len();
        if args.all {
            batch.logit_rows.extend(rows);
        } else if is_last {
            batch.logit_rows.push(rows.end - 1);
        }
        let rows = model.forward(&batch).map_err(CommandError::model(&args.model))?;
        logits.extend_from_slice(rows);
    }
    let positions = logits.len() / vocab_size;
    super::npy::write(&args.out, [positions, vocab_size], &logits)
        .map_err(|error| CommandError::Runtime(format!("write {}: {error}", args.out.display())))
}
