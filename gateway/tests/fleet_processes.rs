//! The fleet over real processes and sockets: what a client of it sees when workers start, stream, crash, hang, lie
//! and stop.

#[expect(clippy::expect_used, reason = "a test's scenery may panic like the test itself")]
mod fleet_fake;
#[expect(clippy::expect_used, reason = "helpers of tests may panic like the tests themselves")]
mod fleet_poison;
mod fleet_resume;

use fleet_fake::worker::{POISON_HANG, SEQUENCES};
use fleet_fake::{PATIENCE, Setup, collect, expected, is_alive, kill, request};
use futures_util::StreamExt;
use gateway::fleet::*;
use nix::sys::signal::Signal;
use shared::error::Category;
use shared::ipc::message::FinishReason;
use std::time::{Duration, Instant};

/// Not a test: the entry of the fake worker's process. See `fleet_fake/worker.sh`.
#[test]
fn fake_worker() {
    fleet_fake::worker::main();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_loads_becomes_ready_and_streams() {
    let scene = Setup::new("slow_load").start();
    let loading = scene.until("loading", |s| s.workers[0].loading.is_some()).await;
    assert_eq!(loading.workers[0].state, WorkerState::Loading);
    assert_eq!(loading.unready_reason().as_deref(), Some("worker 0 is loading (25 %)"));
    assert_eq!(loading.workers[0].device.as_ref().map(|device| device.name.as_str()), Some("abacus"));
    let early = scene.fleet.submit(request(&[1, 2], 10)).expect("waits for the model");
    std::fs::write(scene.notes.path().join("go"), "").unwrap();
    let ready = scene.ready().await;
    assert_eq!(ready.unready_reason(), None);
    assert_eq!(ready.model().map(|model| model.name.as_str()), Some("fake"));
    let outcome = collect(early).await;
    assert_eq!(outcome.tokens, expected(&[1, 2], 10));
    assert_eq!((outcome.end, outcome.attempts), (Ok(FinishReason::Length), 1));
    scene.until("idle", |s| s.workers[0].in_flight_requests == 0 && s.workers[0].in_flight_tokens == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_over_two_workers_each_get_their_own_tokens() {
    let scene = Setup { workers: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let streams: Vec<_> =
        (0..40u32).map(|n| (n, scene.fleet.submit(request(&[n, 5], 100)).expect("taken"))).collect();
    let busy = scene.fleet.snapshot();
    assert!(
        busy.workers.iter().all(|worker| worker.in_flight_requests >= SEQUENCES as usize),
        "both are used"
    );
    assert!(busy.waiting_requests > 0, "the rest waits where any worker can take it");
    for (n, stream) in streams {
        assert_eq!(collect(stream).await.tokens, expected(&[n, 5], 100));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_stream_cancels_in_the_worker() {
    let scene = Setup { step_ms: 5, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let mut stream = scene.fleet.submit(request(&[3], 50_000)).expect("taken");
    assert!(matches!(stream.next().await, Some(FleetEvent::Token(..))));
    let id = stream.id();
    drop(stream);
    assert_eq!(scene.fleet.snapshot().workers[0].in_flight_requests, 0, "freed at once");
    scene.noted(&format!("cancel {id} 0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_restarts_and_its_requests_go_on() {
    let scene = Setup { step_ms: 3, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let mut stream = scene.fleet.submit(request(&[4, 4], 200)).expect("taken");
    let mut first = Vec::new();
    while first.len() < 5 {
        let Some(FleetEvent::Token(token, _)) = stream.next().await else { panic!("a token") };
        first.push(token);
    }
    kill(scene.pid(0), Signal::SIGKILL);
    let rest = collect(stream).await;
    first.extend(rest.tokens);
    assert_eq!(first, expected(&[4, 4], 200), "no token missing, none twice");
    assert_eq!((rest.end, rest.attempts), (Ok(FinishReason::Length), 2));
    let after = scene.ready().await;
    assert_eq!(after.workers[0].restarts, 1);
    let last_exit = after.workers[0].last_exit.as_ref().expect("remembered");
    assert_eq!(last_exit.reason(), "signal 9 (SIGKILL)");
    assert_eq!(scene.complete(request(&[9], 3)).await.tokens, expected(&[9], 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_workers_the_other_takes_over() {
    let scene = Setup { step_ms: 3, workers: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let streams: Vec<_> =
        (0..8u32).map(|n| (n, scene.fleet.submit(request(&[n], 100)).expect("taken"))).collect();
    scene.noted("submit 7").await;
    // Not SIGSEGV: Rust's handler for stack overflows swallows the first one that somebody else sends.
    kill(scene.pid(1), Signal::SIGABRT);
    for (n, stream) in streams {
        let outcome = collect(stream).await;
        assert_eq!(outcome.tokens, expected(&[n], 100));
        assert_eq!(outcome.end, Ok(FinishReason::Length));
    }
    assert_eq!(scene.until("restart", |s| s.workers[1].restarts > 0).await.workers[1].restarts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_breaks_the_protocol_is_replaced_and_nothing_is_lost() {
    for (script, reason) in
        [("first_garbage", "frame does not decode"), ("first_gap", "token index 6, expected 5")]
    {
        let scene = Setup::new(script).start();
        let outcome = scene.complete(request(&[8, 1], 40)).await;
        assert_eq!(outcome.tokens, expected(&[8, 1], 40), "{script}");
        assert_eq!((outcome.end, outcome.attempts), (Ok(FinishReason::Length), 2), "{script}");
        let cause = scene.ready().await.workers[0].last_exit.as_ref().expect("remembered").reason();
        assert!(cause.contains(reason), "{script}: {cause}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_worker_is_killed_and_its_requests_go_on() {
    for (script, reason) in [
        ("first_hang", "no answer for 600ms (signal 9 (SIGKILL))"),
        // Its reports come oftener than the gateway looks, and must not keep it from looking.
        ("first_stuck", "no progress for 600ms while computing (signal 9 (SIGKILL))"),
    ] {
        let mut setup = Setup::new(script);
        setup.timing.hang = Duration::from_millis(600);
        let scene = setup.start();
        let outcome = scene.complete(request(&[8, 1], 40)).await;
        assert_eq!(outcome.tokens, expected(&[8, 1], 40), "{script}");
        assert_eq!((outcome.end, outcome.attempts), (Ok(FinishReason::Length), 2), "{script}");
        let cause = scene.ready().await.workers[0].last_exit.as_ref().expect("remembered").reason();
        assert_eq!(cause, reason);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_hangs_while_it_drains_is_not_waited_for() {
    const GRACE: Duration = Duration::from_secs(25);
    let mut setup = Setup { workers: 2, ..Setup::new("faithful") };
    setup.timing.hang = Duration::from_secs(1);
    setup.timing.terminate_grace = Duration::from_millis(100);
    let scene = setup.start();
    scene.ready().await;
    let stream = scene.fleet.submit(request(&[POISON_HANG, 1], 5)).expect("taken");
    scene.noted("hangs").await;
    let start = Instant::now();
    let restarted = scene.fleet.restart_workers(GRACE).await.expect("both come back");
    assert!(restarted.workers.len() == 2 && start.elapsed() < GRACE, "{:?}", start.elapsed());
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_get_better_fails_at_once_and_says_why() {
    let version = shared::ipc::PROTOCOL_VERSION;
    let wrong_version = format!("worker speaks protocol version 999, gateway {version} (signal 9 (SIGKILL))");
    let checks = [
        ("bad_model", "model.gguf: gguf magic is wrong (exit code 65)"),
        ("wrong_version", wrong_version.as_str()),
    ];
    for (script, reason) in checks {
        let scene = Setup::new(script).start();
        let early = scene.fleet.submit(request(&[1], 5));
        let failed = scene.until("failed", |s| s.workers[0].state == WorkerState::Failed).await;
        assert_eq!(failed.unready_reason(), Some(format!("worker 0 is failed: {reason}")));
        assert_eq!(failed.permanent_failure().map(LastExit::reason).as_deref(), Some(reason));
        if let Ok(stream) = early {
            let Err(error) = collect(stream).await.end else { panic!("{script}: served") };
            assert_eq!(error.category(), Category::Recoverable, "{error}");
        }
        let Err(refused) = scene.fleet.submit(request(&[1], 5)) else { panic!("{script}: taken") };
        assert_eq!(refused.to_string(), format!("no worker can serve: worker 0 is failed: {reason}"));
        assert_eq!(scene.pids().len(), 1, "{script}: tried again");
        assert!(!is_alive(scene.pids()[0]), "{script}: reaped");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_there_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let worker =
        WorkerConfig { program: "/nonexistent/rocmforge-worker".into(), args: Vec::new(), env: Vec::new() };
    let config = FleetConfig { run_dir: parent.path().join("run"), ..FleetConfig::new(vec![worker]) };
    let fleet = Fleet::start(config).unwrap();
    let mut changes = fleet.watch();
    let reason = tokio::time::timeout(PATIENCE, async {
        while fleet.snapshot().workers[0].state != WorkerState::Failed {
            changes.changed().await.unwrap();
        }
        fleet.snapshot().unready_reason().unwrap()
    });
    let expected =
        "worker 0 is failed: cannot start worker /nonexistent/rocmforge-worker: No such file or directory";
    assert!(reason.await.unwrap().starts_with(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_frees_as_streams_end() {
    let queue = QueueLimits { requests: 3, ..QueueLimits::default() };
    let scene = Setup { queue, step_ms: 5, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let mut held = Vec::new();
    let refusal = loop {
        match scene.fleet.submit(request(&[1], 50_000)) {
            Ok(stream) => held.push(stream),
            Err(refusal) => break refusal,
        }
        assert!(held.len() < 100, "never full");
    };
    assert!(refusal.is_overload() && refusal.retry_after().is_some(), "{refusal}");
    assert_eq!(scene.fleet.snapshot().waiting_requests, 3);
    assert!(scene.fleet.snapshot().unready_reason().is_some());
    held.clear();
    assert_eq!(scene.complete(request(&[1], 3)).await.tokens, expected(&[1], 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_does_not_read_loses_its_request_and_harms_nobody() {
    let queue = QueueLimits { unread_tokens: 20, ..QueueLimits::default() };
    let scene = Setup { queue, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let asleep = scene.fleet.submit(request(&[1], 50_000)).expect("taken");
    // Both run in the same steps, so the reader's tokens show that the sleeper's were made.
    let mut reader = scene.fleet.submit(request(&[2], 200)).expect("taken");
    let mut read = Vec::new();
    while let Some(FleetEvent::Token(token, _)) = reader.next().await {
        read.push(token);
    }
    assert_eq!(read, expected(&[2], 200));
    scene.noted(&format!("cancel {} 0", asleep.id())).await;
    let outcome = collect(asleep).await;
    assert_eq!(outcome.tokens, expected(&[1], 20));
    assert_eq!(outcome.end, Err(RequestError::SlowConsumer { unread: 20, limit: 20 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_end_requests_in_the_queue_and_in_the_worker() {
    let scene = Setup { step_ms: 5, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let short = TokenRequest { deadline: Duration::from_millis(150), ..request(&[1], 50_000) };
    let outcome = scene.complete(short).await;
    let Err(RequestError::Deadline { deadline_ms: 150, emitted }) = outcome.end else {
        panic!("{outcome:?}")
    };
    assert_eq!(outcome.tokens, expected(&[1], emitted as u32));
    scene.noted("cancel 0 0").await;

    let queue = QueueLimits { timeout: Duration::from_millis(50), ..QueueLimits::default() };
    let scene = Setup { queue, ..Setup::new("slow_load") }.start();
    let outcome = scene.complete(request(&[1], 5)).await;
    assert!(matches!(outcome.end, Err(RequestError::QueueTimeout { waited_ms: 50.. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_finishes_requests_and_leaves_no_process_and_no_file() {
    let scene = Setup { step_ms: 2, workers: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let stream = scene.fleet.submit(request(&[6], 100)).expect("taken");
    let running = tokio::spawn(collect(stream));
    let fleet = scene.fleet.clone();
    let shutdown = tokio::spawn(async move { fleet.shutdown(PATIENCE).await });
    scene.until("draining", |s| s.draining).await;
    assert_eq!(scene.fleet.submit(request(&[6], 1)).err(), Some(SubmitError::Draining));
    let outcome = running.await.unwrap();
    assert_eq!((outcome.tokens, outcome.end), (expected(&[6], 100), Ok(FinishReason::Length)));
    shutdown.await.unwrap();
    assert_eq!(scene.pids().len(), 2);
    assert!(scene.pids().into_iter().all(|pid| !is_alive(pid)), "a process is left");
    assert!(!scene.run_dir.exists(), "files are left");
    assert!(scene.fleet.snapshot().workers.iter().all(|worker| worker.state == WorkerState::Stopped));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_ends_what_does_not_end_by_itself() {
    let mut setup = Setup { step_ms: 5, ..Setup::new("stubborn") };
    setup.timing.terminate_grace = Duration::from_millis(200);
    let scene = setup.start();
    scene.ready().await;
    let stream = scene.fleet.submit(request(&[6], 50_000)).expect("taken");
    scene.noted("submit").await;
    scene.fleet.shutdown(Duration::from_millis(50)).await;
    assert_eq!(collect(stream).await.end, Err(RequestError::ShuttingDown));
    assert!(scene.notes().contains("sigterm"), "asked before it was killed");
    assert!(!is_alive(scene.pids()[0]) && !scene.run_dir.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_last_handle_kills_the_workers() {
    let scene = Setup::new("faithful").start();
    scene.ready().await;
    let pids = scene.pids();
    let stream = scene.fleet.submit(request(&[6], 50_000)).expect("taken");
    let run_dir = scene.run_dir.clone();
    drop(scene);
    assert_eq!(collect(stream).await.end, Err(RequestError::ShuttingDown));
    let gone = async {
        while pids.iter().any(|pid| is_alive(*pid)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("processes end");
    assert!(!run_dir.exists());
}
