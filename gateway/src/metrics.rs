//! The gateway's metrics: names, help texts and buckets in one place, recorded through small functions, rendered for
//! `GET /metrics` together with gauges taken from the fleet's snapshot at that moment. The fleet records its workers'
//! own metrics.
//!
//! Names are `rocmforge_<what>_<unit>` in base units. Labels are bounded: routes are the router's own patterns,
//! workers are configured ones.

use crate::fleet::FleetSnapshot;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use std::sync::OnceLock;
use std::time::Duration;

const REQUESTS: &str = "rocmforge_requests_total";
const PROMPT_TOKENS: &str = "rocmforge_prompt_tokens_total";
const FIRST_TOKEN: &str = "rocmforge_time_to_first_token_seconds";
const INTER_TOKEN: &str = "rocmforge_inter_token_seconds";
const REQUEST_DURATION: &str = "rocmforge_request_duration_seconds";
const ACTIVE_REQUESTS: &str = "rocmforge_active_requests";
const QUEUE_LENGTH: &str = "rocmforge_queue_length";
const RUNNING_SEQUENCES: &str = "rocmforge_running_sequences";
const KV_UTILISATION: &str = "rocmforge_kv_cache_utilisation_ratio";
const REJECTED: &str = "rocmforge_requests_rejected_total";
const RATE_LIMITED: &str = "rocmforge_requests_rate_limited_total";
const BUILD_INFO: &str = "rocmforge_build_info";

/// From a cached one-token answer to the default request timeout.
const SECONDS_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Between tokens: from small models on fast devices to a stall.
const TOKEN_SECONDS_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The process's recorder, installed at the first call.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets(SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(INTER_TOKEN.to_owned()), TOKEN_SECONDS_BUCKETS)?
        .build_recorder();
    let handle = HANDLE.get_or_init(|| recorder.handle()).clone();
    // Fails only when another thread was faster, whose handle is then the one in use.
    if metrics::set_global_recorder(recorder).is_ok() {
        describe();
    }
    Ok(handle)
}

fn describe() {
    describe_counter!(REQUESTS, "HTTP requests answered, by route and status");
    describe_counter!(PROMPT_TOKENS, "Prompt tokens of accepted requests");
    describe_histogram!(FIRST_TOKEN, "From a request's submission to its first token");
    describe_histogram!(INTER_TOKEN, "Between two tokens of a request");
    describe_histogram!(REQUEST_DURATION, "From a request's submission to its end");
    describe_gauge!(ACTIVE_REQUESTS, "Requests being generated or waiting");
    describe_gauge!(QUEUE_LENGTH, "Sequences waiting in the gateway for a worker");
    describe_gauge!(RUNNING_SEQUENCES, "Sequences the workers compute now");
    describe_gauge!(KV_UTILISATION, "Share of a worker's KV blocks in use, 0 to 1");
    describe_counter!(REJECTED, "Requests and connections refused for want of room, by reason");
    describe_counter!(RATE_LIMITED, "Requests refused since their key had used its rate, by what it counts");
    describe_gauge!(BUILD_INFO, "Always 1; the version is a label");
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!(ACTIVE_REQUESTS).set(0.0);
    counter!(PROMPT_TOKENS).absolute(0);
}

/// The text of `GET /metrics`.
pub fn render(handle: &PrometheusHandle, fleet: &FleetSnapshot) -> String {
    gauge!(QUEUE_LENGTH).set(fleet.waiting_requests as f64);
    let running: u32 = fleet.workers.iter().map(|worker| worker.stats.running).sum();
    gauge!(RUNNING_SEQUENCES).set(f64::from(running));
    for worker in &fleet.workers {
        let stats = &worker.stats;
        let used = stats.kv_blocks_total.saturating_sub(stats.kv_blocks_free);
        gauge!(KV_UTILISATION, "worker" => worker.id.to_string())
            .set(f64::from(used) / f64::from(stats.kv_blocks_total.max(1)));
    }
    handle.render()
}

/// An HTTP request was answered. `route` is a pattern of the router.
pub fn http_request(route: &str, status: u16) {
    counter!(REQUESTS, "route" => route.to_owned(), "status" => status.to_string()).increment(1);
}

/// A request or connection was refused for want of room. `reason` is one of a few words.
pub(crate) fn rejected(reason: &'static str) {
    counter!(REJECTED, "reason" => reason).increment(1);
}

/// A request was refused since its key had used its rate.
pub(crate) fn rate_limited(counted: &'static str) {
    counter!(RATE_LIMITED, "limit" => counted).increment(1);
}

pub(crate) fn prompt_tokens(tokens: u64) {
    counter!(PROMPT_TOKENS).increment(tokens);
}

pub(crate) fn first_token(after: Duration) {
    histogram!(FIRST_TOKEN).record(after);
}

pub(crate) fn next_token(after: Duration) {
    histogram!(INTER_TOKEN).record(after);
}

pub(crate) fn request_duration(duration: Duration) {
    histogram!(REQUEST_DURATION).record(duration);
}

/// Counts a request as active while it lives.
#[derive(Debug)]
pub(crate) struct ActiveRequest(());

impl ActiveRequest {
    pub(crate) fn new() -> Self {
        gauge!(ACTIVE_REQUESTS).increment(1.0);
        Self(())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        gauge!(ACTIVE_REQUESTS).decrement(1.0);
    }
}
