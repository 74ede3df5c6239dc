//! How a worker's process ended, in words and in consequences.

use shared::error::ExitCode;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Signals an operator, the kernel's out-of-memory killer or a service manager sends: their receiver did nothing.
const OUTSIDE_SIGNALS: [i32; 5] = [1, 2, 3, 9, 15];

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl From<ExitStatus> for ExitKind {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            // A status without a code always has a signal; 0 would read "signal 0".
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }
}

impl ExitKind {
    /// Whether the same command would only fail again: wrong flags, wrong configuration, bad model file.
    pub fn is_permanent(self) -> bool {
        let Self::Code(code) = self else { return false };
        matches!(
            ExitCode::from_status(code),
            Some(ExitCode::Usage | ExitCode::Configuration | ExitCode::ModelFile)
        )
    }

    /// Whether the status is that of a process ended from outside, as far as a status can tell. A worker returns 0 only
    /// when it was told to end.
    pub fn is_from_outside(self) -> bool {
        match self {
            Self::Code(code) => code == ExitCode::Ok as i32,
            Self::Signal(signal) => OUTSIDE_SIGNALS.contains(&signal),
        }
    }
}

impl std::fmt::Display for ExitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(signal) {
                Ok(name) => write!(f, "signal {signal} ({name})"),
                Err(_) => write!(f, "signal {signal}"),
            },
        }
    }
}

/// A worker process's end as `/health`, `/ready` and errors tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastExit {
    /// How the process ended; `None` when it could not be started.
    pub exit: Option<ExitKind>,
    /// Why the gateway gave the worker up before it ended by itself.
    pub cause: Option<String>,
    /// The last lines it wrote to stderr, oldest first.
    pub stderr: Vec<String>,
    /// Starting it again cannot help, and is not tried.
    pub permanent: bool,
}

impl LastExit {
    /// Nothing known yet.
    pub(crate) fn unknown() -> Self {
        Self { exit: None, cause: None, stderr: Vec::new(), permanent: false }
    }

    /// One line: what went wrong, then how the process ended.
    pub fn reason(&self) -> String {
        let last_words = self.stderr.iter().rev().map(|line| line.trim()).find(|line| says_why(line));
        let why = self.cause.as_deref().or(last_words);
        match (why, self.exit) {
            (Some(why), Some(exit)) => format!("{why} ({exit})"),
            (Some(why), None) => why.to_owned(),
            (None, Some(exit)) => exit.to_string(),
            (None, None) => "unknown".to_owned(),
        }
    }
}

/// Whether a line of stderr may be a reason: neither empty, nor a report that all is well, nor part of what Rust's
/// runtime prints after a panic.
fn says_why(line: &str) -> bool {
    let is_frame = line.split_once(": ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    let is_about_frames = ["at ", "note: ", "stack backtrace:", "INFO ", "DEBUG ", "TRACE "]
        .iter()
        .any(|start| line.starts_with(start));
    !(line.is_empty() || is_frame || is_about_frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(exit: ExitKind, text: &str, permanent: bool, outside: bool) {
        assert_eq!(exit.to_string(), text);
        assert_eq!((exit.is_permanent(), exit.is_from_outside()), (permanent, outside), "{text}");
    }

    #[test]
    fn a_status_says_how_it_came_about_and_whether_trying_again_helps() {
        check(ExitKind::Signal(9), "signal 9 (SIGKILL)", false, true);
        check(ExitKind::Signal(11), "signal 11 (SIGSEGV)", false, false);
        check(ExitKind::Signal(6), "signal 6 (SIGABRT)", false, false);
        check(ExitKind::Signal(63), "signal 63", false, false);
        check(ExitKind::Code(65), "exit code 65", true, false);
        check(ExitKind::Code(64), "exit code 64", true, false);
        check(ExitKind::Code(2), "exit code 2", true, false);
        check(ExitKind::Code(1), "exit code 1", false, false);
        check(ExitKind::Code(0), "exit code 0", false, true);
    }

    #[test]
    fn the_reason_prefers_what_the_gateway_saw_over_the_last_line_of_stderr() {
        let mut exit = LastExit {
            exit: Some(ExitKind::Code(65)),
            cause: None,
            stderr: vec!["loading".to_owned(), "gguf magic is wrong".to_owned(), " ".to_owned()],
            permanent: true,
        };
        assert_eq!(exit.reason(), "gguf magic is wrong (exit code 65)");
        exit.cause = Some("no progress for 30 s".to_owned());
        assert_eq!(exit.reason(), "no progress for 30 s (exit code 65)");
        let lines = [
            "memory allocation of 9 bytes failed",
            "stack backtrace:",
            "   3: worker::fault::strike",
            "             at src/fault/mod.rs:9:1",
            "note: run with `RUST_BACKTRACE=full` for a verbose backtrace.",
        ];
        exit.cause = None;
        exit.stderr = lines.map(str::to_owned).to_vec();
        assert_eq!(exit.reason(), "memory allocation of 9 bytes failed (exit code 65)");
        exit =
            LastExit { exit: Some(ExitKind::Signal(9)), cause: None, stderr: Vec::new(), permanent: false };
        assert_eq!(exit.reason(), "signal 9 (SIGKILL)");
    }
}
