//! Errors and bodies on their way between axum and the wire types.

use super::BODY_TIMEOUT;
use crate::fleet::{RequestError, SubmitError};
use crate::openai::{ApiError, ErrorKind};
use crate::prompt::model::PromptError;
use axum::body::{Body, Bytes};
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use shared::error::Category;
use shared::ipc::message::Rejection;

/// The answer for an error: its status, its JSON body, and the headers that go with it.
pub fn error_response(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, error.to_json()).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(wait) = error.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    if error.kind == ErrorKind::Authentication {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if matches!(error.kind, ErrorKind::BodyTooLarge | ErrorKind::BodyTimeout) {
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

/// The whole body, within a limit of bytes and of time.
pub async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, bytes_max).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the request body is longer than {bytes_max} bytes");
            Err(ApiError::new(ErrorKind::BodyTooLarge, message).code("body_too_large"))
        }
        Ok(Err(error)) => {
            let message = format!("the request body could not be read: {error}");
            Err(ApiError::new(ErrorKind::InvalidRequest, message))
        }
        Err(_) => {
            let message = format!("the request body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Err(ApiError::new(ErrorKind::BodyTimeout, message))
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
