//! `/health`, `/ready` and `/metrics`. They read a snapshot and never wait for a worker, so they answer at once
//! whatever the workers do.

use super::ApiState;
use super::answer::json;
use crate::fleet::{FleetSnapshot, WorkerSnapshot, WorkerState};
use crate::metrics;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json as object};
use std::sync::Arc;

/// 200 exactly when a request sent now would be served.
pub async fn ready(State(state): State<Arc<ApiState>>) -> Response {
    match state.source.snapshot().unready_reason() {
        None => json(&object!({"ready": true})),
        Some(reason) => {
            let mut response = json(&object!({"ready": false, "reason": reason}));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// 200 while the gateway runs, with what it knows of its workers.
pub async fn health(State(state): State<Arc<ApiState>>) -> Response {
    let fleet = state.source.snapshot();
    json(&object!({
        "status": status(&fleet),
        "service": "rocmforge",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": state.started.elapsed().as_secs(),
        "model": state.settings.model_id,
        "checks": checks(&fleet),
        "queue": {"requests": fleet.waiting_requests, "tokens": fleet.waiting_tokens},
        "workers": fleet.workers.iter().map(worker).collect::<Vec<_>>(),
    }))
}

/// Prometheus text.
pub async fn metrics_text(State(state): State<Arc<ApiState>>) -> Response {
    let text = metrics::render(&state.metrics, &state.source.snapshot());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

fn status(fleet: &FleetSnapshot) -> &'static str {
    let ready = fleet.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    let starting = |worker: &WorkerSnapshot| {
        matches!(worker.state, WorkerState::Starting | WorkerState::Loading) && worker.restarts == 0
    };
    match ready {
        _ if fleet.draining => "draining",
        all if all == fleet.workers.len() => "ok",
        0 if fleet.workers.iter().all(starting) => "starting",
        0 => "unavailable",
        _ => "degraded",
    }
}

fn checks(fleet: &FleetSnapshot) -> Value {
    let devices =
        || fleet.workers.iter().filter_map(|worker| worker.device.as_ref().map(|device| (worker, device)));
    let gpus: Vec<_> = devices().filter(|(_, device)| device.backend != "cpu").collect();
    let gpu = match gpus.len() {
        0 => "none",
        _ if gpus.iter().all(|(worker, _)| worker.state == WorkerState::Ready) => "ok",
        _ => "degraded",
    };
    // Workers on the CPU share the host's memory; every GPU has its own.
    let host =
        devices().filter(|(_, device)| device.backend == "cpu").map(|(_, device)| device.memory_total_bytes);
    let total =
        host.max().unwrap_or(0) + gpus.iter().map(|(_, device)| device.memory_total_bytes).sum::<u64>();
    let used: u64 = fleet.workers.iter().map(|worker| worker.stats.memory_used_bytes).sum();
    let loaded = fleet.workers.iter().any(|worker| worker.state == WorkerState::Ready);
    object!({
        "gpu": gpu,
        "model": if loaded { "ok" } else { "not loaded" },
        "memory": {"used": used, "total": total},
    })
}

fn worker(worker: &WorkerSnapshot) -> Value {
    object!({
        "id": worker.id.0,
        "pid": worker.pid,
        "device": worker.device.as_ref().map(|device| object!({
            "backend": device.backend,
            "name": device.name,
            "units": device.units,
            "memory_total": device.memory_total_bytes,
        })),
        "state": worker.state.to_string(),
        "restarts": worker.restarts,
        "last_exit": worker.last_exit.as_ref().map(|exit| exit.reason()),
        "last_stderr": worker.last_exit.as_ref().map(|exit| &exit.stderr),
        "loading": worker.loading.map(|progress| object!({"done": progress.done_bytes, "total": progress.total_bytes})),
        "in_flight": worker.in_flight_requests,
    })
}
