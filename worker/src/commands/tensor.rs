//! `tensor`: one tensor of a file, dequantized to f32.

use super::CommandError;
use crate::model::weights::Tensor;
use clap::Args;
use shared::gguf::Gguf;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `tensor`.
#[derive(Debug, Args)]
pub struct TensorArgs {
    /// GGUF file.
    #[arg(long)]
    pub model: PathBuf,
    /// Name of the tensor.
    #[arg(long)]
    pub name: String,
    /// File to write, f32 `[rows, columns]` in NumPy's format.
    #[arg(long)]
    pub out: PathBuf,
}

/// Runs the command.
pub fn run(args: &TensorArgs) -> Result<(), CommandError> {
    let wrong = CommandError::model(&args.model);
    let gguf = Arc::new(Gguf::open(&args.model).map_err(|error| wrong(error.into()))?);
    let tensor = Tensor::find(&gguf, &args.name).map_err(&wrong)?;
    let values = tensor.to_f32().map_err(|error| wrong(error.into()))?;
    super::npy::write(&args.out, [tensor.rows(), tensor.cols()], &values)
        .map_err(|error| CommandError::Runtime(format!("write {}: {error}", args.out.display())))
}
