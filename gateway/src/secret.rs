//! A text that must not reach logs, errors or debug output: API keys. Used wherever one is held outside a request.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// A key; its debug form says only that there is one.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for comparing and sending.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// As the command line gives it.
impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn debug_output_hides_the_text() {
        let holder = Some(vec![Secret::new("sk-one")]);
        assert_eq!(format!("{holder:?}"), "Some([(hidden)])");
        assert_eq!("sk-two".parse(), Ok(Secret::new("sk-two")));
    }
}
