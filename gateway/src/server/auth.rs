//! API keys and what goes with each: its rate limits and the rank it may ask for. Only SHA-256 digests of keys are
//! kept, and every comparison takes the same time.

use crate::api::Client;
use crate::openai::{ApiError, ErrorKind};
use crate::rate_limit::{Account, RateLimits};
use crate::secret::Secret;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;
use subtle::{ConditionallySelectable, ConstantTimeEq};

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
    /// What follows a key is no setting of it. The key itself is never shown.
    #[error("key file {} line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what to write.
        reason: String,
    },
}

/// The accepted keys; none accepts every request, all on one account.
#[derive(Debug, Clone)]
pub struct ApiKeys {
    keys: Vec<Key>,
    anybody: Client,
    /// Of keys without limits of their own.
    limits: RateLimits,
}

#[derive(Debug, Clone)]
struct Key {
    digest: [u8; 32],
    client: Client,
}

impl Default for ApiKeys {
    fn default() -> Self {
        Self::new(&[], RateLimits::default())
    }
}

impl ApiKeys {
    /// Keeps the digests of `keys`, each with `limits`.
    pub fn new(keys: &[Secret], limits: RateLimits) -> Self {
        let client = || Client { account: Arc::new(Account::new(limits, Instant::now())), priority: 0 };
        let keys = keys.iter().map(|key| Key { digest: digest(key.expose()), client: client() });
        Self { keys: keys.collect(), anybody: client(), limits }
    }

    /// Adds the keys of a file: one a line, with settings of its own behind it (`sk-abc rpm=60 tpm=100000
    /// priority=1`); blank lines and lines starting with `#` apart.
    pub fn add_file(&mut self, path: &Path) -> Result<(), KeyFileError> {
        let read = |error| KeyFileError::Read { path: path.to_owned(), error };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        // A device's length is 0 whatever it gives, so the reading itself is bounded.
        file.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > KEY_FILE_BYTES_MAX {
            return Err(KeyFileError::TooLong { path: path.to_owned() });
        }
        let before = self.keys.len();
        for (line, text) in (1..).zip(text.lines()) {
            let mut words = text.split_whitespace();
            let Some(key) = words.next().filter(|key| !key.starts_with('#')) else { continue };
            let client = client_of(words, self.limits).map_err(|reason| KeyFileError::Line {
                path: path.to_owned(),
                line,
                reason,
            })?;
            self.keys.push(Key { digest: digest(key), client });
        }
        if self.keys.len() == before {
            return Err(KeyFileError::Empty { path: path.to_owned() });
        }
        Ok(())
    }

    /// Whether requests need no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks the value of an `Authorization` header; says who asks.
    pub fn check(&self, authorization: Option<&str>) -> Result<Client, ApiError> {
        if self.is_empty() {
            return Ok(self.anybody.clone());
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
        let mut found = u64::MAX;
        for (index, key) in (0..).zip(&self.keys) {
            found.conditional_assign(&index, key.digest.ct_eq(&given));
        }
        match usize::try_from(found).ok().and_then(|index| self.keys.get(index)) {
            Some(key) => Ok(key.client.clone()),
            None => {
                Err(ApiError::new(ErrorKind::Authentication, "the API key is not known")
                    .code("invalid_api_key"))
            }
        }
    }

    /// Takes over the accounts of `old` where key and limits are the same, so that a reload refills nobody.
    fn adopt(&mut self, old: &Self) {
        let carry = |new: &mut Client, old: &Client| {
            if new.account.limits() == old.account.limits() {
                new.account = Arc::clone(&old.account);
            }
        };
        carry(&mut self.anybody, &old.anybody);
        // Of a key given twice the last one counts, here as in `check`.
        let known: HashMap<[u8; 32], &Client> =
            old.keys.iter().map(|key| (key.digest, &key.client)).collect();
        for key in &mut self.keys {
            if let Some(known) = known.get(&key.digest) {
                carry(&mut key.client, known);
            }
        }
    }
}

/// The keys in force, which may be exchanged while the server runs. Clones are the same ring.
#[derive(Debug, Clone, Default)]
pub struct KeyRing(Arc<RwLock<ApiKeys>>);

impl From<ApiKeys> for KeyRing {
    fn from(keys: ApiKeys) -> Self {
        Self(Arc::new(RwLock::new(keys)))
    }
}

impl KeyRing {
    /// From now on these keys and no others; who keeps key and limits keeps what is left of them.
    pub fn replace(&self, mut keys: ApiKeys) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.adopt(&current);
        *current = keys;
    }

    /// See [`ApiKeys::check`].
    pub fn check(&self, authorization: Option<&str>) -> Result<Client, ApiError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).check(authorization)
    }
}

/// What the words behind a key say; an error names the word and what is allowed.
fn client_of<'a>(words: impl Iterator<Item = &'a str>, limits: RateLimits) -> Result<Client, String> {
    let mut limits = limits;
    let mut priority = 0;
    for word in words {
        let Some((name, value)) = word.split_once('=') else {
            return Err("behind a key write only rpm=N, tpm=N and priority=N".to_owned());
        };
        let limit = || {
            let number = value.parse::<u32>().map_err(|_| {
                format!("{name} is `{value}`, use a whole number from 0 (no limit) to {}", u32::MAX)
            })?;
            Ok::<_, String>((number > 0).then_some(number))
        };
        match name {
            "rpm" => limits.requests_per_minute = limit()?,
            "tpm" => limits.tokens_per_minute = limit()?,
            "priority" => {
                let refuse =
                    |_| format!("priority is `{value}`, use a whole number; smaller is served first");
                priority = value.parse().map_err(refuse)?;
            }
            _ => return Err(format!("unknown setting `{name}`, use rpm=N, tpm=N or priority=N")),
        }
    }
    Ok(Client { account: Arc::new(Account::new(limits, Instant::now())), priority })
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests;
