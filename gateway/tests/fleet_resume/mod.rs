//! What a resumed request must get right besides its tokens: log probabilities, stop tokens, choices of one prompt, its
//! deadline and its turn.

use crate::fleet_fake::worker::{SEQUENCES, logprobs_at, token_at};
use crate::fleet_fake::{Setup, collect, expected, kill, request};
use futures_util::StreamExt;
use gateway::fleet::*;
use nix::sys::signal::Signal;
use shared::ipc::message::{FinishReason, RequestLimits};
use shared::sampling::SamplingParams;
use std::time::{Duration, Instant};

/// Reads `count` tokens and returns the stream.
async fn after(mut stream: TokenStream, count: usize) -> TokenStream {
    for _ in 0..count {
        assert!(matches!(stream.next().await, Some(FleetEvent::Token(..))));
    }
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_go_on_with_their_tokens() {
    let scene = Setup { step_ms: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let sampling = SamplingParams { logprobs: Some(2), ..SamplingParams::greedy() };
    let asked = TokenRequest { sampling, ..request(&[4, 4], 80) };
    let stream = after(scene.fleet.submit(asked).expect("taken"), 10).await;
    kill(scene.pid(0), Signal::SIGKILL);
    let rest = collect(stream).await;
    assert_eq!((rest.end, rest.attempts), (Ok(FinishReason::Length), 2));
    assert_eq!(rest.tokens, expected(&[4, 4], 80)[10..]);
    let logprobs: Vec<_> = (10..80).map(|index| logprobs_at(&[4, 4], index, 2)).collect();
    assert_eq!(rest.logprobs, logprobs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_tokens_and_their_minimum_count_over_all_attempts() {
    let scene = Setup { step_ms: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    // The token at 5 would stop it, but not before 20 are out; the one at 60 does.
    let stop_tokens = vec![token_at(&[4], 5), token_at(&[4], 60)];
    let limits = RequestLimits { max_tokens: 200, min_tokens: 20, stop_tokens, priority: 0 };
    let asked = TokenRequest { limits, ..request(&[4], 200) };
    let mut stream = scene.fleet.submit(asked).expect("taken");
    for (lives, count) in [(1, 3), (2, 20)] {
        stream = after(stream, count).await;
        scene.until("its worker", |s| s.workers[0].restarts + 1 == lives && s.workers[0].pid.is_some()).await;
        kill(scene.pid(0), Signal::SIGKILL);
    }
    let rest = collect(stream).await;
    assert_eq!((rest.end, rest.attempts), (Ok(FinishReason::Stop), 3));
    assert_eq!(rest.tokens, expected(&[4], 61)[23..], "the stop token is the last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn choices_of_one_prompt_move_apart_and_stay_whole() {
    let scene = Setup { step_ms: 2, workers: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let choices = (0..6).map(|seed| {
        let sampling = SamplingParams { seed, ..SamplingParams::default() };
        scene.fleet.submit(TokenRequest { sampling, ..request(&[3, 3], 120) }).expect("taken")
    });
    let streams: Vec<_> = choices.collect();
    scene.noted("submit 5 0").await;
    kill(scene.pid(0), Signal::SIGKILL);
    for stream in streams {
        let outcome = collect(stream).await;
        assert_eq!((outcome.tokens, outcome.end), (expected(&[3, 3], 120), Ok(FinishReason::Length)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_for_a_restart_keeps_its_deadline() {
    let mut setup = Setup { step_ms: 2, ..Setup::new("faithful") };
    setup.timing.backoff_first = Duration::from_secs(20);
    setup.timing.backoff_max = Duration::from_secs(20);
    let scene = setup.start();
    scene.ready().await;
    let asked = TokenRequest { deadline: Duration::from_millis(600), ..request(&[4], 50_000) };
    let stream = after(scene.fleet.submit(asked).expect("taken"), 3).await;
    kill(scene.pid(0), Signal::SIGKILL);
    let started = Instant::now();
    let rest = collect(stream).await;
    assert!(matches!(rest.end, Err(RequestError::Deadline { deadline_ms: 600, .. })), "{rest:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "waited for the worker");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_while_every_worker_is_away_and_an_open_circuit_is_no_end() {
    let mut setup = Setup { step_ms: 2, ..Setup::new("faithful") };
    setup.timing.crashes_max = 1;
    setup.timing.failed_retry = Duration::from_millis(700);
    let scene = setup.start();
    scene.ready().await;
    let held = scene.fleet.submit(request(&[4], 20)).expect("taken");
    kill(scene.pid(0), Signal::SIGABRT);
    scene.until("gone", |s| s.workers[0].state != WorkerState::Ready).await;
    let asked_meanwhile = scene.fleet.submit(request(&[5], 20)).expect("waits");
    for (prompt, stream) in [(4, held), (5, asked_meanwhile)] {
        let outcome = collect(stream).await;
        assert_eq!((outcome.tokens, outcome.end), (expected(&[prompt], 20), Ok(FinishReason::Length)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_requests_go_before_newer_ones() {
    let scene = Setup { step_ms: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let count = SEQUENCES * 4;
    let streams: Vec<_> = (0..count).map(|n| scene.fleet.submit(request(&[n], 60)).expect("taken")).collect();
    scene.noted("submit 3 0").await;
    kill(scene.pid(0), Signal::SIGKILL);
    for (n, stream) in (0..count).zip(streams) {
        assert_eq!(collect(stream).await.tokens, expected(&[n], 60));
    }
    let notes = scene.notes();
    let second_life = notes.split("started ").nth(2).expect("a second life");
    let order: Vec<u32> = second_life
        .lines()
        .filter_map(|line| line.strip_prefix("submit ")?.split(' ').next()?.parse().ok())
        .collect();
    assert!(order.is_sorted(), "older ones first: {order:?}");
    assert_eq!(order[0], 0, "the oldest was resumed first");
}
