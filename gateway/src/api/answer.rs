//! Errors and bodies on their way between axum and the wire types.

use super::body::BODY_MEMORY;
use crate::fleet::{RequestError, SubmitError};
use crate::openai::{ApiError, ErrorKind};
use crate::prompt::model::PromptError;
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared::error::Category;
use shared::ipc::message::Rejection;

/// The wait of `retry-after`, to the millisecond.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The answer for an error: its status, its JSON body, and the headers that go with it.
pub fn error_response(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, error.to_json()).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(wait) = error.retry_after {
        // Rounded up, so that nobody comes too early.
        let whole_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_s.max(1)));
        if let Ok(millis) = u64::try_from(wait.as_millis()) {
            // OpenAI's, which its clients prefer.
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis.max(1)));
        }
    }
    if error.kind == ErrorKind::Authentication {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(error.kind, ErrorKind::BodyTooLarge | ErrorKind::BodyTimeout)
        || error.code == Some(BODY_MEMORY)
    {
        // The rest of the body is not read, so the connection cannot carry another request.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        error_response(&self)
    }
}

/// A value as a JSON answer.
pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "answer does not serialize");
            error_response(&ApiError::new(ErrorKind::Internal, "the answer could not be written as JSON"))
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let kind = match error.category() {
            Category::User => ErrorKind::InvalidRequest,
            _ if error.is_overload() => ErrorKind::Overloaded,
            Category::Recoverable => ErrorKind::Unavailable,
            Category::Internal | Category::Fatal => ErrorKind::Internal,
        };
        let code = match (&error, kind) {
            (SubmitError::PromptTooLong { .. }, _) => "context_length_exceeded",
            (_, ErrorKind::InvalidRequest) => "invalid_request",
            (_, ErrorKind::Overloaded) => "overloaded",
            _ => "unavailable",
        };
        Self::new(kind, error.to_string()).code(code).retry_after(error.retry_after())
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let kind = match (&error, error.category()) {
            (RequestError::Deadline { .. }, _) => ErrorKind::Timeout,
            (RequestError::Rejected(Rejection::Overloaded { .. }), _) => ErrorKind::Overloaded,
            (_, Category::User) => ErrorKind::InvalidRequest,
            (_, Category::Recoverable) => ErrorKind::Unavailable,
            (_, Category::Internal | Category::Fatal) => ErrorKind::Internal,
        };
        let retry_after = (kind.status() == 503 || kind.status() == 429).then_some(RETRY_AFTER_FAILURE);
        Self::new(kind, error.to_string()).code(error.code()).retry_after(retry_after)
    }
}

/// Suggested wait after a request that was taken and then failed for want of a worker: the order of a restart.
const RETRY_AFTER_FAILURE: std::time::Duration = std::time::Duration::from_secs(2);

/// The error of a prompt that cannot be made; `param` names the field it came from.
pub(super) fn prompt_error(error: &PromptError, param: &str) -> ApiError {
    ApiError::field(param, format!("{param}: {error}"))
}
