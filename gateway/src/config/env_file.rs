//! A file of `NAME=value` lines, as `.env.example` shows them, that stands in for environment variables. Unlike these
//! it can be read again while the server runs, which is what SIGHUP does.
//!
//! The environment goes before the file. What holds always: a file that cannot be understood as a whole is refused as
//! a whole, naming the line; values are never shown, since keys are among them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest file: every variable would fit a hundred times.
const BYTES_MAX: u64 = 1 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    /// It cannot be read.
    #[error("env file {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// It is longer than any set of variables.
    #[error("env file {} is longer than {BYTES_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A line says nothing.
    #[error("env file {} line {line}: write NAME=value", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// Variables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvFile(BTreeMap<String, String>);

impl EnvFile {
    /// Reads `path`.
    pub fn read(path: &Path) -> Result<Self, EnvFileError> {
        let failed = |error| EnvFileError::Read { path: path.to_owned(), error };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        // A device's length is 0 whatever it gives, so the reading itself is bounded.
        file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(EnvFileError::TooLong { path: path.to_owned() });
        }
        Self::parse(&text).map_err(|line| EnvFileError::Line { path: path.to_owned(), line })
    }

    /// The variable's value; an empty one counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All variables.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// An error is the number of the line.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut variables = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (name, value) = line.split_once('=').ok_or(number)?;
            let name = name.trim();
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(number);
            }
            variables.insert(name.to_owned(), unquoted(value.trim()).ok_or(number)?.to_owned());
        }
        Ok(Self(variables))
    }
}

/// The value without the quotes around it; `None` where one is missing.
fn unquoted(value: &str) -> Option<&str> {
    for quote in ['"', '\''] {
        if let Some(rest) = value.strip_prefix(quote) {
            return rest.strip_suffix(quote);
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_variables_and_the_last_of_a_name_counts() {
        let text =
            "# keys\n\nROCMFORGE_PORT=1\n export ROCMFORGE_PORT = 9000 \nA=\"two words\"\nB='x=y'\nC=\n";
        let file = EnvFile::parse(text).unwrap();
        assert_eq!((file.get("ROCMFORGE_PORT"), file.get("A")), (Some("9000"), Some("two words")));
        assert_eq!((file.get("B"), file.get("C"), file.get("D")), (Some("x=y"), None, None));
    }

    #[test]
    fn a_line_that_says_nothing_is_named_without_its_text() {
        for (text, line) in [("A=1\nsk-secret\n", 2), ("=1", 1), ("A B=1", 1), ("A=\"open", 1)] {
            assert_eq!(EnvFile::parse(text), Err(line), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        std::fs::write(&path, "sk-secret\n").unwrap();
        let error = EnvFile::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("env line 1: write NAME=value") && !error.contains("sk-"), "{error}");
        assert!(matches!(EnvFile::read(Path::new("/dev/zero")), Err(EnvFileError::TooLong { .. })));
        assert!(matches!(EnvFile::read(Path::new("/nonexistent")), Err(EnvFileError::Read { .. })));
    }
}
