//! API keys. Only their SHA-256 digests are kept, and every comparison takes the same time.

use crate::openai::{ApiError, ErrorKind};
use crate::secret::Secret;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use subtle::{Choice, ConstantTimeEq};

/// Longest key file: some ten thousand keys.
const KEY_FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("key file {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// It is longer than any list of keys.
    #[error("key file {} is longer than {KEY_FILE_BYTES_MAX} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It has no key, which would otherwise open the server to everybody.
    #[error("key file {} has no key; write one a line", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The accepted keys; none accepts every request.
#[derive(Debug, Clone, Default)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// Keeps the digests of `keys`.
    pub fn new(keys: &[Secret]) -> Self {
        Self { digests: keys.iter().map(|key| digest(key.expose())).collect() }
    }

    /// Adds the keys of a file: one a line, blank lines and lines starting with `#` apart.
    pub fn add_file(&mut self, path: &Path) -> Result<(), KeyFileError> {
        let read = |error| KeyFileError::Read { path: path.to_owned(), error };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        // A device's length is 0 whatever it gives, so the reading itself is bounded.
        file.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > KEY_FILE_BYTES_MAX {
            return Err(KeyFileError::TooLong { path: path.to_owned() });
        }
        let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = self.digests.len();
        self.digests.extend(keys.map(digest));
        if self.digests.len() == before {
            return Err(KeyFileError::Empty { path: path.to_owned() });
        }
        Ok(())
    }

    /// Whether requests need no key.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Checks the value of an `Authorization` header.
    pub fn check(&self, authorization: Option<&str>) -> Result<(), ApiError> {
        if self.is_empty() {
            return Ok(());
        }
        let Some(header) = authorization else {
            let message = "no API key: send the header `Authorization: Bearer KEY`";
            return Err(ApiError::new(ErrorKind::Authentication, message).code("missing_api_key"));
        };
        let key = header.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some((_, key)) = key else {
            let message = "the Authorization header must be `Bearer KEY`";
            return Err(ApiError::new(ErrorKind::Authentication, message).code("invalid_api_key"));
        };
        let given = digest(key.trim());
        let known = self.digests.iter().fold(Choice::from(0), |known, digest| known | digest.ct_eq(&given));
        if bool::from(known) {
            return Ok(());
        }
        Err(ApiError::new(ErrorKind::Authentication, "the API key is not known").code("invalid_api_key"))
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_bearer_keys_pass() {
        let keys = ApiKeys::new(&["sk-one", "sk-two"].map(Secret::new));
        let passes = |header| keys.check(header).is_ok();
        assert!(passes(Some("Bearer sk-one")) && passes(Some("bearer  sk-two")));
        for header in [
            None,
            Some("sk-one"),
            Some("Basic sk-one"),
            Some("Bearer sk-on"),
            Some("Bearer "),
            Some("Bearer"),
        ] {
            assert!(!passes(header), "{header:?}");
        }
        assert!(ApiKeys::default().check(None).is_ok());
        assert!(!format!("{keys:?}").contains("sk-one"));
    }

    #[test]
    fn key_files_hold_a_key_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# team\nsk-a\n\n  sk-b  \n").unwrap();
        let mut keys = ApiKeys::default();
        keys.add_file(&path).unwrap();
        assert!(keys.check(Some("Bearer sk-b")).is_ok() && keys.check(Some("Bearer # team")).is_err());
        std::fs::write(&path, "# nothing\n").unwrap();
        assert!(matches!(ApiKeys::default().add_file(&path), Err(KeyFileError::Empty { .. })));
        assert!(ApiKeys::default().add_file(Path::new("/nonexistent")).is_err());
        let endless = ApiKeys::default().add_file(Path::new("/dev/zero"));
        assert!(matches!(endless, Err(KeyFileError::TooLong { .. })), "{endless:?}");
    }
}
