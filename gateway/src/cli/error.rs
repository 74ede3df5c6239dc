//! Why a command failed, as one line and an exit code.

use shared::error::ExitCode;

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// What the process returns.
    pub exit_code: ExitCode,
    /// One line for stderr.
    pub message: String,
}

impl CommandError {
    /// The work failed while running.
    pub fn runtime(message: impl Into<String>) -> Self {
        Self { exit_code: ExitCode::Runtime, message: message.into() }
    }

    /// A flag, variable or input cannot be used.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { exit_code: ExitCode::Configuration, message: message.into() }
    }

    /// The model file cannot be used.
    pub fn model_file(error: &dyn std::error::Error) -> Self {
        Self { exit_code: ExitCode::ModelFile, message: shared::error::one_line(error) }
    }

    /// The server cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { exit_code: ExitCode::Unreachable, message: message.into() }
    }
}
