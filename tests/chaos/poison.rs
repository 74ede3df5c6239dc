//! A request that kills every worker it runs on, among others that do not: it fails alone.

use crate::report::assert_unharmed;
use crate::storm::{Harm, run};
use crate::workload::Job;
use harness::{MODEL, Server, ServerOptions, poll, post};
use serde_json::json;

/// Innocents at the same time.
const INNOCENTS: u64 = 50;
/// Crashes a poison request may cause before it is known for what it is.
const CRASHES_MAX: u64 = 3;
/// A token of no prompt but the poison's: the demo model's `~`.
const MARKER: u32 = 96;

fn check(workers: &str) {
    let jobs: Vec<Job> = (0..INNOCENTS).map(Job::numbered).collect();
    let reference = run(&Server::ready(&ServerOptions::default()), &jobs, Harm::None);
    let options = ServerOptions::args(&["--workers", workers])
        .env("ROCMFORGE_FAULT", &format!("die=segv@token={MARKER}; slow=20"));
    let server = Server::ready(&options);
    let poison = json!({"model": MODEL, "prompt": [263, MARKER, 263], "max_tokens": 50, "ignore_eos": true});
    let (outcome, (status, body)) = std::thread::scope(|scope| {
        let storm = scope.spawn(|| run(&server, &jobs, Harm::None));
        poll("innocents to run", || {
            (server.metric("rocmforge_engine_running_sequences")? >= 5.0).then_some(())
        });
        let answer = post(&server.at("/v1/completions"), &poison);
        (storm.join().expect("a client panicked"), answer)
    });
    assert_eq!((status, &body["error"]["code"]), (500, &json!("poison_request")), "{body}");
    assert_unharmed("poison", &jobs, &outcome, &reference.visits);
    let health = server.health();
    let restarts = health["workers"].as_array().expect("workers").iter().map(|worker| &worker["restarts"]);
    let crashes: u64 = restarts.filter_map(serde_json::Value::as_u64).sum();
    assert!((1..=CRASHES_MAX).contains(&crashes), "{crashes} crashes: {health}");
}

#[test]
fn a_poison_request_fails_alone_on_the_only_worker() {
    check("1");
}

#[test]
fn a_poison_request_fails_alone_among_four_workers() {
    check("4");
}
