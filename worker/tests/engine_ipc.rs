//! The worker's engine and IPC server over real sockets, with the scripted model.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "engine_gateway/mod.rs"]
mod gateway;
#[path = "engine_scripted/mod.rs"]
mod scripted;

use gateway::{Gateway, Worker, run_engine};
use scripted::{Faults, alone, config, submit};
use shared::error::ExitCode;
use shared::ids::{Attempt, RequestId};
use shared::ipc::frame::{FRAME_BYTES_MAX, encode_frame};
use shared::ipc::message::{FinishReason, Phase, Rejection, Submit};
use shared::ipc::{FromWorker, PROTOCOL_VERSION, ToWorker, transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use worker::ipc_server::{LoadFailure, ServeError};

#[tokio::test]
async fn concurrent_requests_share_steps_and_get_their_own_tokens() {
    let worker = Worker::roomy();
    let mut gateway = Gateway::ready(&worker).await;
    let requests = [submit(1, &[1, 2, 3], 40), submit(2, &[4; 30], 40), submit(3, &[1, 2, 9], 40)];
    for request in &requests {
        gateway.submit(request.clone()).await;
    }
    gateway.until_all_ended().await;
    assert!(gateway.shared_steps > 30, "requests waited for each other: {}", gateway.shared_steps);
    for request in &requests {
        let (tokens, reason) = alone(request, 4096);
        let answer = &gateway.answers[&request.id];
        assert_eq!((&answer.tokens, &answer.end), (&tokens, &Some(Ok(reason))));
    }
}

#[tokio::test]
async fn a_resumed_request_continues_with_the_same_tokens() {
    let worker = Worker::roomy();
    let mut gateway = Gateway::ready(&worker).await;
    let mut whole = submit(1, &[5, 6, 7], 30);
    whole.sampling.frequency_penalty = 0.5;
    let (tokens, _) = alone(&whole, 4096);
    let resumed = Submit { attempt: Attempt(1), emitted: tokens[..11].to_vec(), ..whole };
    gateway.submit(resumed).await;
    let first = gateway.until(|m| matches!(m, FromWorker::Step { events, .. } if !events.is_empty())).await;
    let FromWorker::Step { events, .. } = first else { unreachable!("until returned another message") };
    assert_eq!((events[0].index, events[0].attempt), (11, Attempt(1)));
    gateway.until_all_ended().await;
    assert_eq!(gateway.answers[&RequestId(1)].tokens, tokens[11..]);
}

#[tokio::test]
async fn cancel_frees_the_blocks_and_touches_no_other_attempt() {
    let worker = Worker::roomy();
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1; 20], 4000)).await;
    gateway.until(|m| matches!(m, FromWorker::Step { events, .. } if !events.is_empty())).await;
    gateway.send(ToWorker::Cancel { id: RequestId(1), attempt: Attempt(7) }).await;
    gateway.send(ToWorker::Cancel { id: RequestId(99), attempt: Attempt(0) }).await;
    assert_eq!(gateway.ping().await.running, 1);
    gateway.send(ToWorker::Cancel { id: RequestId(1), attempt: Attempt(0) }).await;
    let stats = gateway.ping().await;
    assert_eq!(gateway.answers[&RequestId(1)].end, Some(Ok(FinishReason::Cancelled)));
    assert_eq!((stats.running, stats.kv_blocks_free), (0, stats.kv_blocks_total));
}

#[tokio::test]
async fn a_gateway_that_leaves_takes_its_requests_along_and_another_may_come() {
    let worker = Worker::roomy();
    let mut first = Gateway::ready(&worker).await;
    first.submit(submit(1, &[1; 20], 4000)).await;
    first.send(ToWorker::Drain).await;
    first.until(|m| matches!(m, FromWorker::Step { .. })).await;
    drop(first);
    let mut second = Gateway::ready(&worker).await;
    let stats = second.ping().await;
    assert_eq!((stats.running, stats.waiting, stats.kv_blocks_free), (0, 0, stats.kv_blocks_total));
    // The same id is free again, and draining ended with the gateway that wanted it.
    second.submit(submit(1, &[2], 3)).await;
    second.until_all_ended().await;
    assert_eq!(second.answers[&RequestId(1)].end, Some(Ok(FinishReason::Length)));
}

#[tokio::test]
async fn a_second_gateway_is_refused_by_name_until_the_first_is_gone() {
    let worker = Worker::roomy();
    let mut first = Gateway::ready(&worker).await;
    first.submit(submit(1, &[1], 4000)).await;
    let mut second = Gateway::connect(&worker).await;
    assert_eq!(second.receive().await, Some(FromWorker::Busy { owner_pid: Some(std::process::id()) }));
    assert_eq!(second.receive().await, None);
    first.until(|m| matches!(m, FromWorker::Step { events, .. } if !events.is_empty())).await;
    drop(first);
    let mut third = Gateway::ready(&worker).await;
    assert_eq!(third.ping().await.running, 0);
}

#[tokio::test]
async fn heartbeats_come_while_the_engine_hangs_and_show_that_it_does() {
    let faults = Faults { hang_at_step: Some(3), ..Faults::default() };
    let worker = Worker::start(config(64, 16, 4), faults);
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1], 40)).await;
    // Many in a row that say the same: a living engine would get on between two of them. More than the engine has room
    // for, so that pings are no longer read.
    let still = |beats: &[(Phase, u64)]| {
        beats.len() >= 300
            && beats[beats.len() - 100..]
                .iter()
                .all(|beat| beat.0 == Phase::Computing && beats.ends_with(&[*beat]))
    };
    let mut beats = Vec::new();
    while beats.len() < 10_000 && !still(&beats) {
        gateway.send(ToWorker::Ping { nonce: 1 }).await;
        let beat = gateway.until(|m| matches!(m, FromWorker::Heartbeat { .. })).await;
        let FromWorker::Heartbeat { phase, progress } = beat else { unreachable!("until returned another") };
        beats.push((phase, progress));
    }
    assert!(still(&beats), "{:?}", beats.last());
}

#[tokio::test]
async fn another_version_is_told_ours_and_turned_away() {
    let worker = Worker::roomy();
    let mut gateway = Gateway::ready(&worker).await;
    let mut stranger = transport::connect(&worker.socket).await.unwrap();
    stranger.sender.write(&ToWorker::Hello { version: PROTOCOL_VERSION + 1 }).await.unwrap();
    let answer = stranger.receiver.read::<FromWorker>().await.unwrap();
    assert!(matches!(answer, Some(FromWorker::Hello { version: PROTOCOL_VERSION, .. })));
    assert!(!matches!(stranger.receiver.read::<FromWorker>().await, Ok(Some(_))));
    gateway.ping().await;
}

/// Sends raw bytes, after a proper hello or without one, and waits until the worker closes.
async fn send_garbage(worker: &Worker, hello: Option<ToWorker>, garbage: &[u8]) {
    let mut stream = UnixStream::connect(&worker.socket).await.unwrap();
    let mut bytes = Vec::new();
    hello.iter().for_each(|hello| encode_frame(hello, &mut bytes).unwrap());
    bytes.extend_from_slice(garbage);
    stream.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    // Closed with unread bytes, the socket may be reset; both are an end.
    let _ = stream.read_to_end(&mut answer).await;
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let worker = Worker::roomy();
    let oversized = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    let undecodable = [3, 0, 0, 0, 0xff, 0xff, 0xff];
    let mut gateway = Gateway::ready(&worker).await;
    for garbage in [oversized.as_slice(), &undecodable] {
        send_garbage(&worker, None, garbage).await;
    }
    let mut not_hello = Vec::new();
    encode_frame(&ToWorker::Drain, &mut not_hello).unwrap();
    send_garbage(&worker, None, &not_hello).await;
    gateway.ping().await;
    // After a proper handshake the newcomer is the gateway; its garbage ends it, and the worker takes the next.
    drop(gateway);
    let hello = || Some(ToWorker::Hello { version: PROTOCOL_VERSION });
    for garbage in [oversized.as_slice(), &undecodable] {
        send_garbage(&worker, hello(), garbage).await;
    }
    let mut second_hello = Vec::new();
    encode_frame(&ToWorker::Hello { version: PROTOCOL_VERSION }, &mut second_hello).unwrap();
    send_garbage(&worker, hello(), &second_hello).await;
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1], 2)).await;
    gateway.until_all_ended().await;
}

#[tokio::test]
async fn draining_finishes_what_runs_and_rejects_what_comes() {
    let worker = Worker::roomy();
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1, 2], 50)).await;
    gateway.send(ToWorker::Drain).await;
    gateway.submit(submit(2, &[1, 2], 50)).await;
    gateway.until_all_ended().await;
    assert_eq!(gateway.answers[&RequestId(1)].end, Some(Ok(FinishReason::Length)));
    assert_eq!(gateway.answers[&RequestId(2)].end, Some(Err(Rejection::Draining)));
}

#[tokio::test]
async fn shutdown_ends_the_server_in_any_state() {
    let worker = Worker::roomy();
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1], 4000)).await;
    gateway.send(ToWorker::Shutdown).await;
    worker.end().await.unwrap();
    let (worker, _loader) = Worker::bind();
    let mut gateway = Gateway::connect(&worker).await;
    gateway.send(ToWorker::Shutdown).await;
    worker.end().await.unwrap();
}

#[tokio::test]
async fn loading_shows_progress_and_answers_pings() {
    let (worker, loader) = Worker::bind();
    let mut gateway = Gateway::connect(&worker).await;
    gateway.until(|m| matches!(m, FromWorker::Loading { done_bytes: 0, .. })).await;
    gateway.submit(submit(1, &[1], 2)).await;
    gateway.until(|m| matches!(m, FromWorker::Rejected { error: Rejection::Overloaded { .. }, .. })).await;
    gateway.send(ToWorker::Ping { nonce: 1 }).await;
    gateway.until(|m| matches!(m, FromWorker::Heartbeat { phase: Phase::Loading, .. })).await;
    let reached = |m: &FromWorker| matches!(m, FromWorker::Loading { total_bytes: 1000, done_bytes } if *done_bytes > 0);
    // Messages are limited in rate, so that one report may go unheard but not all of them.
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let reports = tokio::task::spawn_blocking(move || {
        let mut done_bytes = 0;
        while matches!(stopped.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
            done_bytes = (done_bytes + 1) % 1000;
            loader.progress(done_bytes, 1000);
            std::thread::yield_now();
        }
        loader
    });
    gateway.until(reached).await;
    stop.send(()).unwrap();
    run_engine(reports.await.unwrap(), config(64, 16, 4), Faults::default());
    let ready = gateway.until(|m| matches!(m, FromWorker::Ready { .. })).await;
    let FromWorker::Ready { model, limits } = ready else { unreachable!("until returned another message") };
    assert_eq!((model.name.as_str(), limits.context_tokens), ("hash", 64));
    gateway.answers.clear();
    gateway.submit(submit(1, &[1], 2)).await;
    gateway.until_all_ended().await;
}

#[tokio::test]
async fn a_failed_load_is_fatal_with_its_exit_code() {
    let (worker, loader) = Worker::bind();
    let mut gateway = Gateway::connect(&worker).await;
    gateway.until(|m| matches!(m, FromWorker::Loading { .. })).await;
    let message = "tensor `x` is missing".to_owned();
    loader.fail(LoadFailure { message: message.clone(), exit_code: ExitCode::ModelFile });
    let fatal = gateway.until(|m| matches!(m, FromWorker::Fatal { .. })).await;
    assert_eq!(fatal, FromWorker::Fatal { error: message });
    assert_eq!(worker.end().await.unwrap_err().exit_code(), ExitCode::ModelFile);
    let (worker, loader) = Worker::bind();
    drop(loader);
    assert!(matches!(worker.end().await, Err(ServeError::Panicked)));
}

#[tokio::test]
async fn a_device_failure_is_fatal() {
    let faults = Faults { fail_at_step: Some(5), ..Faults::default() };
    let worker = Worker::start(config(64, 16, 4), faults);
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1], 40)).await;
    let fatal = gateway.until(|m| matches!(m, FromWorker::Fatal { .. })).await;
    assert_eq!(fatal, FromWorker::Fatal { error: "forward pass failed: device lost at step 5".to_owned() });
    assert_eq!(gateway.answers[&RequestId(1)].tokens.len(), 4);
    assert_eq!(worker.end().await.unwrap_err().exit_code(), ExitCode::Runtime);
}

#[tokio::test]
async fn a_panic_of_the_engine_is_told_and_ends_the_server() {
    let faults = Faults { panic_at_step: Some(3), ..Faults::default() };
    let worker = Worker::start(config(64, 16, 4), faults);
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1], 40)).await;
    gateway.until(|m| matches!(m, FromWorker::Fatal { .. })).await;
    assert_eq!(worker.end().await.unwrap_err().exit_code(), ExitCode::Internal);
}

#[tokio::test]
async fn logits_that_are_no_numbers_end_one_request_alone() {
    let faults = Faults { poison: Some(31), ..Faults::default() };
    let worker = Worker::start(config(64, 64, 4), faults);
    let mut gateway = Gateway::ready(&worker).await;
    let mut healthy = submit(2, &[1, 2], 30);
    healthy.sampling.logit_bias = vec![(31, -100.0)];
    gateway.submit(healthy).await;
    gateway.submit(submit(1, &[1, 31], 30)).await;
    gateway.until_all_ended().await;
    assert_eq!(
        gateway.answers[&RequestId(1)].end,
        Some(Err(Rejection::Internal { message: "logit of token 0 is NaN".to_owned() }))
    );
    assert_eq!(gateway.answers[&RequestId(2)].end, Some(Ok(FinishReason::Length)));
    let stats = gateway.ping().await;
    assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total);
}

#[tokio::test]
async fn a_request_refused_by_the_scheduler_is_rejected() {
    let worker = Worker::start(config(16, 16, 4), Faults::default());
    let mut gateway = Gateway::ready(&worker).await;
    gateway.submit(submit(1, &[1; 16], 4)).await;
    gateway.submit(submit(2, &[1; 15], 4)).await;
    gateway.submit(submit(3, &[1], 0)).await;
    gateway.until_all_ended().await;
    let too_long = Rejection::TooLong { prompt_tokens: 16, context_tokens: 16 };
    assert_eq!(gateway.answers[&RequestId(1)].end, Some(Err(too_long)));
    assert_eq!(gateway.answers[&RequestId(2)].tokens.len(), 1);
    assert_eq!(gateway.answers[&RequestId(3)].end, Some(Ok(FinishReason::Length)));
}
