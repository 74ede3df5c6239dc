//! Fields of the published API that this server does not implement: each is accepted with its neutral value and
//! refused with any other, so that nothing a client relies on is silently ignored.

use super::error::ApiError;
use super::fields::{Fields, show};
use serde_json::{Value, json};

/// Refuses every field of `table` unless it has one of its neutral values (null always is one).
pub(super) fn check(fields: &Fields<'_>, table: &[(&'static str, &[Neutral])]) -> Result<(), ApiError> {
    for (name, neutral) in table {
        let Some(value) = fields.get(name) else { continue };
        if !neutral.iter().any(|neutral| neutral.is(value)) {
            let path = fields.path(name);
            let message = format!("{path} is {}, this is not supported", show(value));
            return Err(ApiError::field(path, message).code("unsupported_parameter"));
        }
    }
    Ok(())
}

/// Notes fields as known that cannot change the answer of this server, whatever their value.
pub(super) fn ignore(fields: &Fields<'_>, names: &[&'static str]) {
    for name in names {
        fields.get(name);
    }
}

/// A value that asks for nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    False,
    One,
    EmptyArray,
    EmptyString,
    Word(&'static str),
    /// `["text"]`
    TextOnly,
    /// `{"type": "text"}`
    TextFormat,
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::False => *value == Value::Bool(false),
            Self::One => value.as_f64() == Some(1.0),
            Self::EmptyArray => value.as_array().is_some_and(Vec::is_empty),
            Self::EmptyString => value.as_str() == Some(""),
            Self::Word(word) => value.as_str() == Some(word),
            Self::TextOnly => *value == json!(["text"]),
            Self::TextFormat => value.get("type").and_then(Value::as_str) == Some("text"),
        }
    }
}
