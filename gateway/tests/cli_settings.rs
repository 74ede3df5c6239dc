//! Flags, variables, help and `.env.example` say the same as the table of settings.

use clap::CommandFactory;
use gateway::cli::Cli;
use gateway::config::{OTHER_VARIABLES, settings};
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_flag_of_serve_is_a_setting_and_its_help_says_so() {
    let cli = Cli::command();
    let serve = cli.find_subcommand("serve").unwrap();
    let shown = serve.get_arguments().filter(|argument| !argument.is_hide_set());
    let flags = shown.filter_map(|argument| argument.get_long()).filter(|flag| *flag != "help");
    let flags: BTreeSet<&str> = flags.collect();
    let expected: BTreeSet<&str> = settings().iter().map(|setting| setting.flag).collect();
    assert_eq!(flags, expected);
    for setting in settings() {
        let argument =
            serve.get_arguments().find(|argument| argument.get_long() == Some(setting.flag)).unwrap();
        let help = argument.get_help().unwrap().to_string();
        assert!(help.contains(setting.variable), "--{}: {help}", setting.flag);
        let default = format!("[default: {}]", setting.default);
        assert_eq!(help.contains("[default:"), !setting.default.is_empty(), "--{}: {help}", setting.flag);
        assert!(setting.default.is_empty() || help.ends_with(&default), "--{}: {help}", setting.flag);
    }
    Cli::command().debug_assert();
}

#[test]
fn every_variable_of_a_command_is_listed() {
    let others = OTHER_VARIABLES.iter().map(|[variable, ..]| *variable);
    let listed: BTreeSet<&str> = settings().iter().map(|setting| setting.variable).chain(others).collect();
    for command in Cli::command().get_subcommands() {
        for variable in command.get_arguments().filter_map(|argument| argument.get_env()) {
            let variable = variable.to_str().unwrap();
            assert!(listed.contains(variable), "{} reads {variable}", command.get_name());
        }
    }
}

/// What `.env.example` must say about a variable.
fn entry(variable: &str, default: &str, example: &str, meaning: &str) -> String {
    let default = if default.is_empty() { "none" } else { default };
    format!("# {meaning}\n# default: {default}; example: {example}\n#{variable}=\n")
}

#[test]
fn env_example_lists_every_variable_with_default_meaning_and_example() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.env.example");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let of_flags = settings().iter().map(|it| entry(it.variable, it.default, it.example, it.meaning));
    let others = OTHER_VARIABLES
        .iter()
        .map(|[variable, default, example, meaning]| entry(variable, default, example, meaning));
    let entries: Vec<String> = of_flags.chain(others).collect();
    for entry in &entries {
        assert!(text.contains(entry.as_str()), "{} lacks\n{entry}", path.display());
    }
    let documented = text.lines().filter(|line| line.starts_with("#ROCMFORGE_")).count();
    assert_eq!(documented, entries.len(), "variables that nothing reads");
    if std::env::var_os("PRINT_ENV_EXAMPLE").is_some() {
        println!("{}", entries.join("\n"));
    }
}
