//! Requests that crash whatever worker computes them, among others that must not suffer for it.

use crate::fleet_fake::worker::{MEMORY_EATER, POISON, POISON_HANG, POISON_LATE};
use crate::fleet_fake::{Outcome, Scene, Setup, collect, expected, request};
use gateway::fleet::*;
use shared::error::Category;
use shared::ids::TokenId;
use shared::ipc::message::FinishReason;
use std::time::Duration;

/// Crashes and hangs that the workers have noted.
fn crashes(scene: &Scene) -> usize {
    scene.notes().lines().filter(|line| line.starts_with("aborts") || *line == "hangs").count()
}

/// The message of a poison request's end, which must be an internal error with a code.
fn poison_message(outcome: &Outcome) -> String {
    let Err(error) = &outcome.end else { panic!("ended with {outcome:?}") };
    assert_eq!((error.category(), error.code()), (Category::Internal, "poison_request"));
    error.to_string()
}

/// Fifty innocents of different lengths and a bad request in their midst; returns what the bad one came to.
async fn among_fifty(scene: &Scene, bad: TokenRequest) -> Outcome {
    scene.ready().await;
    let length = |number: u32| 20 + number * 3;
    let mut innocents = Vec::new();
    let mut bad_stream = None;
    for number in 0..50 {
        if number == 6 {
            bad_stream = Some(scene.fleet.submit(bad.clone()).expect("taken"));
        }
        let stream = scene.fleet.submit(request(&[number, 5], length(number))).expect("taken");
        innocents.push((number, tokio::spawn(collect(stream))));
    }
    let bad = collect(bad_stream.expect("submitted")).await;
    for (number, stream) in innocents {
        let outcome = stream.await.expect("reads");
        assert_eq!(outcome.tokens, expected(&[number, 5], length(number)), "request {number}");
        assert_eq!(outcome.end, Ok(FinishReason::Length), "request {number}");
    }
    bad
}

async fn check_poison(workers: usize, prompt: &[TokenId], emitted: u32) {
    let scene = Setup { workers, ..Setup::new("faithful") }.start();
    let bad = among_fifty(&scene, request(prompt, 200)).await;
    assert_eq!(
        poison_message(&bad),
        "request crashed 3 workers, the last one while it ran alone: assertion failed: poison (signal 6 (SIGABRT))"
    );
    assert_eq!(bad.tokens, expected(prompt, emitted));
    assert_eq!(crashes(&scene), 3, "{workers} workers, {prompt:?}");
    assert_eq!(scene.complete(request(&[1], 3)).await.tokens, expected(&[1], 3), "the next one is served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_among_fifty_fails_alone_over_one_worker() {
    check_poison(1, &[POISON, 5], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_among_fifty_fails_alone_over_four_workers() {
    check_poison(4, &[POISON, 5], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_turns_poison_late_fails_alone_with_its_tokens_out() {
    for workers in [1, 4] {
        check_poison(workers, &[POISON_LATE, 33], 33).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_poisons_at_once_are_both_found() {
    let scene = Setup { workers: 2, ..Setup::new("faithful") }.start();
    scene.ready().await;
    let second = scene.fleet.submit(request(&[POISON, 2], 10)).expect("taken");
    let second = tokio::spawn(collect(second));
    let first = among_fifty(&scene, request(&[POISON, 5], 200)).await;
    for outcome in [first, second.await.expect("reads")] {
        assert!(poison_message(&outcome).starts_with("request crashed "), "{outcome:?}");
    }
    assert!(crashes(&scene) <= 6, "{}", scene.notes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_hangs_its_workers_is_poison_too() {
    let mut setup = Setup::new("faithful");
    setup.timing.hang = Duration::from_millis(400);
    let scene = setup.start();
    let bad = among_fifty(&scene, request(&[POISON_HANG], 10)).await;
    let message = poison_message(&bad);
    assert!(
        message.starts_with("request crashed 3 workers, the last one while it ran alone: no "),
        "{message}"
    );
    assert_eq!(crashes(&scene), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_eats_memory_is_never_condemned_and_harms_nobody_for_long() {
    let scene = Setup { workers: 2, ..Setup::new("faithful") }.start();
    let eater = TokenRequest { deadline: Duration::from_secs(3), ..request(&[MEMORY_EATER], 10) };
    let bad = among_fifty(&scene, eater).await;
    assert_eq!(bad.end, Err(RequestError::Deadline { deadline_ms: 3000, emitted: 0 }));
    let kills = scene.notes().lines().filter(|line| *line == "out of memory").count();
    // Three in company, then alone after 0, 250, 750 and 1750 ms.
    assert!((4..=8).contains(&kills), "killed {kills} times");
}
