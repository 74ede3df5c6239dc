//! The fleet's gauges, and the counters of what happens to requests. Other counters are counted where their events
//! happen, in [`super::core`].

use super::snapshot::{FleetSnapshot, WorkerState};
use crate::ledger::{Death, Released, RequestError};
use crate::routing::Reason;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

const ROUTED: &str = "rocmforge_requests_routed_total";
const RESUMED: &str = "rocmforge_requests_resumed_total";
const SUSPECTED: &str = "rocmforge_requests_suspected_total";
const CLEARED: &str = "rocmforge_requests_cleared_total";
const POISON: &str = "rocmforge_requests_poison_total";

/// Says what each metric means. Call after the process's recorder is installed.
pub(super) fn describe() {
    describe_gauge!("rocmforge_worker_state", "1 for the state the worker is in, 0 for the others");
    describe_gauge!("rocmforge_worker_restarts", "Times the worker's process was started again");
    describe_gauge!("rocmforge_worker_requests_in_flight", "Requests the worker holds");
    describe_gauge!("rocmforge_worker_tokens_in_flight", "Tokens these requests may still cost");
    describe_gauge!("rocmforge_queue_tokens", "Tokens of the waiting requests, prompt and largest output");
    describe_gauge!("rocmforge_engine_running_sequences", "Sequences the worker computes");
    describe_gauge!("rocmforge_engine_waiting_requests", "Requests waiting inside the worker");
    describe_gauge!("rocmforge_engine_kv_blocks_free", "KV blocks no sequence refers to");
    describe_gauge!("rocmforge_engine_kv_blocks", "KV blocks in all");
    describe_gauge!(
        "rocmforge_engine_prefix_queries_tokens",
        "Prompt tokens looked up in the prefix cache since start"
    );
    describe_gauge!("rocmforge_engine_prefix_hits_tokens", "Of these, tokens found");
    describe_gauge!("rocmforge_engine_preemptions", "Sequences preempted for lack of blocks since start");
    describe_gauge!(
        "rocmforge_engine_speculation_drafted_tokens",
        "Tokens guessed by speculative decoding since start"
    );
    describe_gauge!("rocmforge_engine_speculation_accepted_tokens", "Of these, tokens that were right");
    describe_gauge!("rocmforge_engine_batch_tokens", "Token rows of the last step");
    describe_gauge!(
        "rocmforge_worker_memory_used_bytes",
        Unit::Bytes,
        "Memory in use on the worker's device"
    );
    describe_counter!("rocmforge_tokens_generated_total", "Tokens delivered to requests");
    describe_counter!("rocmforge_requests_ended_total", "Requests ended, by outcome");
    describe_counter!(
        ROUTED,
        "Requests handed to a worker, by reason: load, prefix (cached) or alone (isolated)"
    );
    describe_counter!(RESUMED, "Requests handed on after their worker died, by cause: crash, kill or order");
    describe_counter!(SUSPECTED, "Requests that became suspects of a crash or of repeated kills");
    describe_counter!(CLEARED, "Suspects that were cleared by making progress");
    describe_counter!(POISON, "Requests given up since they crash workers");
    for reason in [Reason::Load, Reason::Prefix, Reason::Alone] {
        counter!(ROUTED, "reason" => reason_label(reason)).absolute(0);
    }
    for death in [Death::Crash(""), Death::Killed, Death::Ordered] {
        counter!(RESUMED, "cause" => cause_label(death)).absolute(0);
    }
    for name in [SUSPECTED, CLEARED, POISON] {
        counter!(name).absolute(0);
    }
}

/// A request was handed to a worker.
pub(super) fn routed(reason: Reason) {
    counter!(ROUTED, "reason" => reason_label(reason)).increment(1);
}

/// A suspect has shown progress.
pub(super) fn cleared() {
    counter!(CLEARED).increment(1);
}

/// A worker died and its requests were taken from it.
pub(super) fn released<C>(death: Death<'_>, released: &Released<C>) {
    counter!(RESUMED, "cause" => cause_label(death)).increment(released.resumed as u64);
    counter!(SUSPECTED).increment(released.suspected as u64);
    let poison = |outcome: &Result<_, RequestError>| matches!(outcome, Err(RequestError::Poison { .. }));
    let given_up = released.ended.iter().filter(|ended| poison(&ended.outcome)).count();
    counter!(POISON).increment(given_up as u64);
}

fn reason_label(reason: Reason) -> &'static str {
    match reason {
        Reason::Load => "load",
        Reason::Prefix => "prefix",
        Reason::Alone => "alone",
    }
}

fn cause_label(death: Death<'_>) -> &'static str {
    match death {
        Death::Crash(_) => "crash",
        Death::Killed => "kill",
        Death::Ordered => "order",
    }
}

/// Sets every gauge.
pub(super) fn record(snapshot: &FleetSnapshot) {
    gauge!("rocmforge_queue_tokens").set(snapshot.waiting_tokens as f64);
    for worker in &snapshot.workers {
        let label = worker.id.to_string();
        let set = |name: &'static str, value: f64| gauge!(name, "worker" => label.clone()).set(value);
        for state in WorkerState::ALL {
            let value = f64::from(u8::from(state == worker.state));
            gauge!("rocmforge_worker_state", "worker" => label.clone(), "state" => state.as_str()).set(value);
        }
        let stats = &worker.stats;
        set("rocmforge_worker_restarts", f64::from(worker.restarts));
        set("rocmforge_worker_requests_in_flight", worker.in_flight_requests as f64);
        set("rocmforge_worker_tokens_in_flight", worker.in_flight_tokens as f64);
        set("rocmforge_engine_running_sequences", f64::from(stats.running));
        set("rocmforge_engine_waiting_requests", f64::from(stats.waiting));
        set("rocmforge_engine_kv_blocks_free", f64::from(stats.kv_blocks_free));
        set("rocmforge_engine_kv_blocks", f64::from(stats.kv_blocks_total));
        set("rocmforge_engine_prefix_queries_tokens", stats.prefix_queries as f64);
        set("rocmforge_engine_prefix_hits_tokens", stats.prefix_hits as f64);
        set("rocmforge_engine_preemptions", stats.preemptions as f64);
        set("rocmforge_engine_speculation_drafted_tokens", stats.drafted as f64);
        set("rocmforge_engine_speculation_accepted_tokens", stats.accepted as f64);
        set("rocmforge_engine_batch_tokens", f64::from(stats.batch_tokens));
        set("rocmforge_worker_memory_used_bytes", stats.memory_used_bytes as f64);
    }
}
