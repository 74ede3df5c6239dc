//! Every request has an id: the client's `x-request-id` if it is sensible, else a new one. It is in every log line of
//! the request and in its answer. Requests are counted and logged here when they are answered.

use crate::metrics;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use std::time::Instant;
use tracing::Instrument;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id taken over from a client.
const LENGTH_MAX: usize = 128;

/// Gives the request its id, runs it, logs and counts it.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let id = given(request.headers()).unwrap_or_else(|| format!("req-{}", uuid::Uuid::new_v4().simple()));
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    // Of the highest level, so that warnings have it too where the log shows nothing less.
    let span = tracing::error_span!("request", request_id = %id);
    let started = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let latency_ms = started.elapsed().as_millis() as u64;
    span.in_scope(|| tracing::info!(%method, path, status, latency_ms, "request answered"));
    metrics::http_request(route.as_deref().unwrap_or("none"), status);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

fn given(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(HEADER)?.to_str().ok()?;
    let sensible = !id.is_empty() && id.len() <= LENGTH_MAX && id.bytes().all(|byte| byte.is_ascii_graphic());
    sensible.then(|| id.to_owned())
}
