//! The command line: one file per command, each with its arguments and a `run`.
//!
//! A new command is a module, a variant of [`Command`] and a line in [`run`]. Results go to stdout, everything else to
//! stderr. Errors of all commands meet in [`CliError`], which decides the exit code.

pub mod admin;
mod client;
pub mod compute;
mod error;
pub mod generate;
pub mod inspect;
pub mod models;
mod operator;
pub mod pages;
mod reload;
pub mod serve;
mod startup;
pub mod tokenize;

use clap::{Parser, Subcommand};
pub use error::CommandError;
use serve::{ServeArgs, ServeError};
use shared::error::ExitCode;
use std::io::Write;
use std::path::PathBuf;

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
    /// Generate text for one prompt, from a server or a model file
    Generate(generate::GenerateArgs),
    /// Let a server finish what it has, and end it
    Drain(admin::DrainArgs),
    /// Give a server's workers fresh processes, one after the other
    RestartWorkers(admin::RestartWorkersArgs),
    /// Show how a server and its workers are
    Status(admin::StatusArgs),
    /// List the models of a server or a folder
    Models(models::ModelsArgs),
    /// Show what a model file holds
    Inspect(inspect::InspectArgs),
    /// Turn text into token ids, or back
    Tokenize(tokenize::TokenizeArgs),
    /// Write the logits of a token sequence
    Logits(compute::LogitsArgs),
    /// Time prefill and decode
    Bench(compute::BenchArgs),
    /// Print a shell completion script
    Completions(pages::CompletionsArgs),
    /// Print the manual page
    Man,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// `serve`.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Any other command.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl Cli {
    /// A variable that is needed before the command runs: how to log. A file that stands in for variables is read for
    /// `serve`; what is wrong with it is the command's to say.
    pub fn variable(&self, name: &str) -> Option<String> {
        match &self.command {
            Command::Serve(args) => serve::Sources::read(args).unwrap_or_default().variable(name),
            _ => std::env::var(name).ok(),
        }
    }
}

impl CliError {
    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Serve(error) => error.exit_code(),
            Self::Command(error) => error.exit_code,
        }
    }
}

/// Runs a command to its end.
pub fn run(cli: Cli) -> Result<(), CliError> {
    match cli.command {
        Command::Serve(args) => serve::run(&args)?,
        Command::Generate(args) => on_runtime(generate::run(&args))?,
        Command::Drain(args) => print(&on_runtime(admin::drain(&args))?)?,
        Command::RestartWorkers(args) => print(&on_runtime(admin::restart_workers(&args))?)?,
        Command::Status(args) => print(&on_runtime(admin::status(&args))?)?,
        Command::Models(args) => print(&on_runtime(models::report(&args))?)?,
        Command::Inspect(args) => match (&args.tensor, &args.out) {
            (Some(name), Some(out)) => {
                return Err(compute::tensor(&args.model, name, out, &worker_program()).into());
            }
            _ => print(&inspect::report(&args)?)?,
        },
        Command::Tokenize(args) => {
            tokenize::run(&args, &mut std::io::stdin().lock(), &mut std::io::stdout().lock())?;
        }
        Command::Logits(args) => return Err(compute::logits(&args, &worker_program()).into()),
        Command::Bench(args) => return Err(compute::bench(&args, &worker_program()).into()),
        Command::Completions(args) => print(&pages::completions(&args)?)?,
        Command::Man => print(&pages::man()?)?,
    }
    Ok(())
}

/// The worker's executable, which does what only it can.
fn worker_program() -> PathBuf {
    crate::config::worker_program(&|name| std::env::var(name).ok(), std::env::current_exe().ok().as_deref())
}

/// Runs one command's future; commands other than `serve` need no more than one thread.
fn on_runtime<T>(command: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::runtime(format!("start the runtime: {error}")))?
        .block_on(command)
}

/// Writes a command's result to stdout.
fn print(text: &str) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| CommandError::runtime(format!("standard output: {error}")))
}
