//! The command line: one file per command, each with its arguments and a `run`.
//!
//! A new command is a module, a variant of [`Command`] and a line in [`run`]. Results go to stdout, everything else to
//! stderr. Errors of all commands meet in [`CliError`], which decides the exit code.

pub mod serve;

use clap::{Parser, Subcommand};
use serve::{ServeArgs, ServeError};
use shared::error::ExitCode;

/// `rocmforge`.
#[derive(Debug, Parser)]
#[command(name = "rocmforge", version, about = "OpenAI-compatible inference server for GGUF models")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP
    Serve(Box<ServeArgs>),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// `serve`.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl CliError {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Serve(error) => error.exit_code(),
        }
    }
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> Result<(), CliError> {
    match cli.command {
        Command::Serve(args) => Ok(serve::run(&args)?),
    }
}
