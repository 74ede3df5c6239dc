//! `rocmforge`: parses the command line, sets up logging, runs one command, and turns its error into one line and an
//! exit code.

use clap::Parser;
use gateway::cli::{Cli, run};
use shared::error::{ExitCode, one_line};
use shared::telemetry::init_tracing;

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    if let Err(error) = init_tracing(|name| cli.variable(name)) {
        eprintln!("rocmforge: {}", one_line(&error));
        return ExitCode::Configuration.into();
    }
    match run(cli) {
        Ok(()) => ExitCode::Ok.into(),
        Err(error) => {
            eprintln!("rocmforge: {}", one_line(&error));
            error.exit_code().into()
        }
    }
}
