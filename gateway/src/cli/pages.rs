//! `rocmforge completions` and `rocmforge man`: made from the same definitions as the command line itself.

use super::{Cli, CommandError};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Prints a completion script.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell.
    pub shell: Shell,
}

/// The completion script of one shell.
pub fn completions(args: &CompletionsArgs) -> Result<String, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rocmforge", &mut script);
    into_text(script)
}

/// The manual page: the command itself, then one section for each of its commands.
pub fn man() -> Result<String, CommandError> {
    let failed = |error: std::io::Error| CommandError::runtime(format!("manual page: {error}"));
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).map_err(failed)?;
    for part in command.get_subcommands().filter(|part| part.get_name() != "help") {
        let part = clap_mangen::Man::new(part.clone());
        part.render_name_section(&mut page).map_err(failed)?;
        part.render_synopsis_section(&mut page).map_err(failed)?;
        part.render_options_section(&mut page).map_err(failed)?;
    }
    into_text(page)
}

fn into_text(bytes: Vec<u8>) -> Result<String, CommandError> {
    String::from_utf8(bytes).map_err(|error| CommandError::runtime(format!("page is not UTF-8: {error}")))
}
