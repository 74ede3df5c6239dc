//! The one classification of errors, from which HTTP status, retry and exit code follow.

/// Who can do something about an error. Every error enum of the product answers with one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// The caller's input is wrong; the same input fails again.
    User,
    /// A part is away or full for now; the same request may succeed later or elsewhere.
    Recoverable,
    /// A defect or an impossible state; one request fails, the process goes on.
    Internal,
    /// The process cannot go on.
    Fatal,
}

/// Process exit codes, part of the outside contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Success.
    Ok = 0,
    /// The work failed while running.
    Runtime = 1,
    /// The command line is wrong (clap's own code as well).
    Usage = 2,
    /// Configuration from file or environment is wrong (`EX_USAGE`).
    Configuration = 64,
    /// The model file is damaged or not supported (`EX_DATAERR`).
    ModelFile = 65,
    /// The server cannot be reached (`EX_UNAVAILABLE`).
    Unreachable = 69,
    /// A defect (`EX_SOFTWARE`).
    Internal = 70,
}

impl ExitCode {
    /// The meaning of a process's exit status, where it is one of ours.
    pub fn from_status(code: i32) -> Option<Self> {
        use ExitCode::*;
        [Ok, Runtime, Usage, Configuration, ModelFile, Unreachable, Internal]
            .into_iter()
            .find(|known| *known as i32 == code)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// An error and its sources on one line, outermost first, for a person to read.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        // Some libraries repeat the source in the parent's message.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = inner.source();
    }
    line.replace('\n', " ")
}
