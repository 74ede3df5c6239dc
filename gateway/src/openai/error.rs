//! The error object every refused or failed request is answered with, and the one place that decides its status.

use serde::Serialize;
use std::time::Duration;

/// The class of an error: its HTTP status and the `type` clients see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400: the body or a field is wrong.
    InvalidRequest,
    /// 401: no valid key.
    Authentication,
    /// 404: no such route or model.
    NotFound,
    /// 405: the route knows other methods.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    BodyTimeout,
    /// 413: the body is too long.
    BodyTooLarge,
    /// 415: the body is not JSON by its own account.
    UnsupportedMedia,
    /// 429: too many requests wait.
    Overloaded,
    /// 429: the key has had its requests of this minute.
    RequestRate,
    /// 429: the key has had its tokens of this minute.
    TokenRate,
    /// 500: a defect.
    Internal,
    /// 503: no worker can serve now.
    Unavailable,
    /// 504: the request's deadline passed.
    Timeout,
}

impl ErrorKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Authentication => 401,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::BodyTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::UnsupportedMedia => 415,
            Self::Overloaded | Self::RequestRate | Self::TokenRate => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication_error",
            Self::Overloaded => "rate_limit_error",
            Self::RequestRate => "requests",
            Self::TokenRate => "tokens",
            Self::Internal => "server_error",
            Self::Unavailable | Self::Timeout => "service_unavailable_error",
            _ => "invalid_request_error",
        }
    }
}

/// An error as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Decides status and `type`.
    pub kind: ErrorKind,
    /// One sentence naming the field, its value and what is allowed.
    pub message: String,
    /// The field at fault, in the form `messages[0].content`.
    pub param: Option<String>,
    /// A stable word for programs.
    pub code: Option<&'static str>,
    /// When another try is worthwhile.
    pub retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    /// An error of `kind` without field or code.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A 400 about one field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(ErrorKind::InvalidRequest, message) }
    }

    /// The 404 of a model that is not served.
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("the model `{}` does not exist, see /v1/models", shorten(model));
        Self { param: Some("model".into()), ..Self::new(ErrorKind::NotFound, message) }
            .code("model_not_found")
    }

    /// The same with a stable word for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The same with a hint when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The body: `{"error": {"message", "type", "param", "code"}}`, all four keys always present.
    pub fn to_json(&self) -> String {
        let error = Detail {
            message: &self.message,
            r#type: self.kind.name(),
            param: self.param.as_deref(),
            code: self.code,
        };
        // Strings and nulls always serialize.
        serde_json::to_string(&Body { error }).unwrap_or_default()
    }
}

/// Longest part of a client's value quoted back.
const QUOTED_CHARS_MAX: usize = 80;

/// A value for an error message, cut to a readable length.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
