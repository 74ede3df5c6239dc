//! Who asks and until when: what `server` finds out before a handler runs, and the headers that say so.

use super::ApiState;
use crate::openai::{ApiError, ErrorKind};
use crate::rate_limit::{Account, Counted, RateRefusal};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Milliseconds a request may take in all, at most what the server allows by itself.
pub const TIMEOUT_HEADER: &str = "x-request-timeout-ms";

/// The holder of a key, or everybody where no key is asked for.
#[derive(Debug, Clone)]
pub struct Client {
    /// What is left of its rates.
    pub account: Arc<Account>,
    /// The rank of its requests; they may ask for a later (larger) one.
    pub priority: i32,
}

impl Client {
    /// The rank a request gets that asks for `asked`.
    pub(super) fn rank(&self, asked: Option<i32>) -> i32 {
        asked.unwrap_or(self.priority).max(self.priority)
    }
}

/// One request's client and patience, taken from its head.
pub struct Caller {
    pub(super) client: Client,
    received: Instant,
    /// Kept until the body is read: a refusal before that would cost the client its connection.
    timeout: Result<Duration, ApiError>,
}

impl Caller {
    /// What is left of the request's time; an error where none is, or where its header is wrong.
    pub(super) fn time_left(&self) -> Result<Duration, ApiError> {
        let timeout = self.timeout.clone()?;
        let left = timeout.saturating_sub(self.received.elapsed());
        if left.is_zero() {
            let message = format!("deadline of {} ms passed before the request began", timeout.as_millis());
            return Err(ApiError::new(ErrorKind::Timeout, message).code("deadline_exceeded"));
        }
        Ok(left)
    }
}

impl FromRequestParts<Arc<ApiState>> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, Infallible> {
        // The layer that checks keys puts it there; without that layer nobody is limited.
        let client = parts.extensions.get::<Client>().cloned().unwrap_or_else(|| Client {
            account: Arc::new(Account::new(Default::default(), Instant::now())),
            priority: 0,
        });
        let timeout = parts.headers.get(TIMEOUT_HEADER).map(|value| value.to_str().unwrap_or_default());
        let timeout = timeout_from(timeout, state.settings.request_timeout);
        Ok(Self { client, received: Instant::now(), timeout })
    }
}

fn timeout_from(header: Option<&str>, longest: Duration) -> Result<Duration, ApiError> {
    let Some(text) = header else { return Ok(longest) };
    let millis = text.parse::<u64>().ok().filter(|millis| *millis > 0).map(Duration::from_millis);
    millis.filter(|asked| *asked <= longest).ok_or_else(|| {
        let shown: String = text.chars().take(32).collect();
        let longest = longest.as_millis();
        ApiError::field(
            TIMEOUT_HEADER,
            format!(
                "the header {TIMEOUT_HEADER} is `{shown}`, it must be a whole number from 1 to {longest}"
            ),
        )
    })
}

impl From<RateRefusal> for ApiError {
    fn from(refusal: RateRefusal) -> Self {
        let kind = match refusal.counted {
            Counted::Requests => ErrorKind::RequestRate,
            Counted::Tokens => ErrorKind::TokenRate,
        };
        let message = match refusal.wait {
            Some(_) => format!("rate limit reached on {refusal}"),
            None => format!("request too large for the rate limit on {refusal}"),
        };
        Self::new(kind, message).code("rate_limit_exceeded").retry_after(refusal.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_header_is_a_number_within_the_server_s_own() {
        let longest = Duration::from_secs(60);
        assert_eq!(timeout_from(None, longest), Ok(longest));
        assert_eq!(timeout_from(Some("1"), longest), Ok(Duration::from_millis(1)));
        assert_eq!(timeout_from(Some("60000"), longest), Ok(longest));
        for wrong in ["0", "-1", "60001", "1.5", "", "99999999999999999999999", "soon"] {
            let error = timeout_from(Some(wrong), longest).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
            let expected = "it must be a whole number from 1 to 60000";
            assert!(error.message.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn a_request_may_only_be_more_patient_than_its_key() {
        let account = Arc::new(Account::new(Default::default(), Instant::now()));
        let client = Client { account, priority: -2 };
        for (asked, rank) in [(None, -2), (Some(-5), -2), (Some(-2), -2), (Some(7), 7)] {
            assert_eq!(client.rank(asked), rank);
        }
    }
}
