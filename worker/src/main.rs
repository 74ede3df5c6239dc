//! `rocmforge-worker`: parses the command line, sets up logging, runs one command, and turns its error into one
//! line and an exit code.

use clap::Parser;
use shared::error::{ExitCode, one_line};
use shared::telemetry::init_tracing;
use worker::commands::{Cli, Command, CommandError, bench, logits, serve, tensor};

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if let Err(error) = init_tracing(|name| std::env::var(name).ok()) {
        return fail(&error, ExitCode::Configuration);
    }
    let outcome: Result<(), CommandError> = match &cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Tensor(args) => tensor::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::Ok.into(),
        Err(error) => fail(&error, error.exit_code()),
    }
}

fn fail(error: &dyn std::error::Error, code: ExitCode) -> std::process::ExitCode {
    eprintln!("rocmforge-worker: {}", one_line(error));
    code.into()
}
