//! One worker, or one gateway, and a signal at a bad moment.

use crate::report::{assert_unharmed, line};
use crate::storm::{Harm, Outcome, run, send};
use crate::workload::Job;
use harness::{Server, ServerOptions, Stream, get, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A step takes so many milliseconds more, so that signals meet running requests.
const SLOW: &str = "slow=10";

fn slow(workers: &str) -> ServerOptions {
    ServerOptions::args(&["--workers", workers]).env("ROCMFORGE_FAULT", SLOW)
}

fn worker(server: &Server) -> Pid {
    Pid::from_raw(server.worker_pids()[0])
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

/// A request of some seconds, and the text of its chunks.
fn long_body() -> Value {
    json!({
        "model": "default", "prompt": "One two three", "max_tokens": 300, "ignore_eos": true, "temperature": 0.8,
        "seed": 7,
    })
}

fn text(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect()
}

#[test]
fn requests_wait_for_the_only_worker_to_come_back() {
    let jobs: Vec<Job> = (0..48).map(Job::numbered).collect();
    let server = Server::ready(&slow("1"));
    let reference = run(&server, &jobs, Harm::None);
    let worker = worker(&server);
    let mut restart = Duration::ZERO;
    let outcome: Outcome = std::thread::scope(|scope| {
        let storm = scope.spawn(|| run(&server, &jobs, Harm::None));
        poll("the worker to compute", || {
            let workers = server.health()["workers"].clone();
            (workers[0]["in_flight"].as_u64() >= Some(16)).then_some(())
        });
        send(Signal::SIGKILL, worker);
        let killed = Instant::now();
        poll("/ready to notice", || (get(&server.at("/ready")).0 == 503).then_some(()));
        server.wait_ready();
        restart = killed.elapsed();
        storm.join().expect("a client panicked")
    });
    println!("{}", line("single worker, undisturbed", &reference));
    println!("{}", line("single worker, killed once", &outcome));
    let longest = |outcome: &Outcome| outcome.visits.iter().flat_map(|visit| visit.gaps.clone()).max();
    println!(
        "single worker: ready {:.0} ms after the kill; longest pause of a stream {:.0} ms, undisturbed {:.0} ms",
        restart.as_secs_f64() * 1e3,
        longest(&outcome).unwrap_or_default().as_secs_f64() * 1e3,
        longest(&reference).unwrap_or_default().as_secs_f64() * 1e3,
    );
    assert_unharmed("single worker", &jobs, &outcome, &reference.visits);
    assert_eq!(server.health()["workers"][0]["restarts"], 1);
    let resumed = server.metric("rocmforge_requests_resumed_total").unwrap_or(0.0);
    assert!(resumed >= 16.0, "{resumed} requests were moved");
}

#[test]
fn a_worker_killed_while_the_server_drains_delays_its_end_only() {
    let mut server = Server::ready(&slow("1"));
    let url = server.at("/v1/completions");
    let expected = text(&Stream::open(&url, &long_body()).rest());
    let mut stream = Stream::open(&url, &long_body());
    let mut chunks = vec![stream.next_chunk().expect("first chunk")];
    let worker = worker(&server);
    server.signal(Signal::SIGTERM);
    poll("/ready to say that it drains", || (get(&server.at("/ready")).0 == 503).then_some(()));
    send(Signal::SIGKILL, worker);
    chunks.extend(stream.rest());
    assert!(stream.done, "the stream broke off: {:?}", chunks.last());
    assert_eq!(text(&chunks), expected);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn no_worker_outlives_a_killed_gateway() {
    let mut server = Server::ready(&slow("4"));
    let mut streams: Vec<Stream> =
        (0..4).map(|_| Stream::open(&server.at("/v1/completions"), &long_body())).collect();
    for stream in &mut streams {
        stream.next_chunk().expect("first chunk");
    }
    let workers = server.worker_pids();
    assert_eq!(workers.len(), 4);
    server.signal(Signal::SIGKILL);
    assert_eq!(server.wait(), None);
    poll("the workers to be gone", || (!workers.iter().any(|&pid| is_alive(pid))).then_some(()));
}
