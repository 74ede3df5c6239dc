//! Reads the fields of a JSON object by name and type. Every failure is a 400 naming field, value and what is allowed.
//! An explicit null is as good as a missing field.

use super::error::{ApiError, ErrorKind, shorten};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// One object of a request, and which of its fields were asked for.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Path of the object itself with a trailing dot, or empty for the body.
    prefix: String,
    known: RefCell<Vec<&'static str>>,
}

/// Parses a request body, which must be a JSON object.
pub(super) fn parse_body(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let message = format!("the request body is {}, it must be a JSON object", kind(&other));
            Err(ApiError::new(ErrorKind::InvalidRequest, message).code("invalid_json"))
        }
        Err(error) => {
            let message = format!("the request body is not valid JSON: {error}");
            Err(ApiError::new(ErrorKind::InvalidRequest, message).code("invalid_json"))
        }
    }
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value and what it is, for an error message.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        _ => shorten(&value.to_string()),
    }
}

/// The error of a field whose value has the wrong type or range.
pub(super) fn refuse(param: impl Into<String>, value: impl Display, allowed: impl Display) -> ApiError {
    let param = param.into();
    let message = format!("{param} is {value}, it must be {allowed}");
    ApiError::field(param, message)
}

impl<'a> Fields<'a> {
    pub(super) fn of_body(object: &'a Map<String, Value>) -> Self {
        Self { object, prefix: String::new(), known: RefCell::default() }
    }

    /// The fields of the object `value` found at `path`.
    pub(super) fn of(value: &'a Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(object) => {
                Ok(Self { object, prefix: format!("{path}."), known: RefCell::default() })
            }
            other => Err(refuse(path, show(other), "an object")),
        }
    }

    /// The field's full path.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The field's value, `None` when absent or null.
    pub(super) fn get(&self, name: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().push(name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Fields nobody asked for.
    pub(super) fn unknown(&self) -> Vec<String> {
        let known = self.known.borrow();
        let names = self.object.keys().filter(|name| !known.contains(&name.as_str()));
        names.take(UNKNOWN_FIELDS_MAX).map(|name| shorten(name)).collect()
    }

    pub(super) fn string(&self, name: &'static str) -> Result<Option<&'a str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn bool(&self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn array(&self, name: &'static str) -> Result<Option<&'a [Value]>, ApiError> {
        self.typed(name, "an array", |value| value.as_array().map(Vec::as_slice))
    }

    pub(super) fn object(&self, name: &'static str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.typed(name, "an object", Value::as_object)
    }

    /// A whole number within `range`. `2.0` is one too, as in JavaScript.
    pub(super) fn integer(
        &self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match integer(value).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(refuse(self.path(name), show(value), in_words(&range))),
        }
    }

    /// A number within `range`.
    pub(super) fn number(
        &self,
        name: &'static str,
        range: RangeInclusive<f32>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().map(|number| number as f32).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let allowed = format!("a number from {} to {}", range.start(), range.end());
                Err(refuse(self.path(name), show(value), allowed))
            }
        }
    }

    fn typed<T>(
        &self,
        name: &'static str,
        allowed: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| refuse(self.path(name), show(value), allowed))
    }
}

/// Most unknown fields named in the log line.
const UNKNOWN_FIELDS_MAX: usize = 16;

/// A JSON number with a whole value.
pub(super) fn integer(value: &Value) -> Option<i64> {
    let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(whole))
}

fn in_words(range: &RangeInclusive<i64>) -> String {
    match (*range.start(), *range.end()) {
        (i64::MIN, i64::MAX) => "an integer of 64 bits".to_owned(),
        (start, i64::MAX) => format!("an integer of at least {start}"),
        (start, end) => format!("an integer from {start} to {end}"),
    }
}
