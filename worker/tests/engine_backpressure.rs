//! The engine against a gateway that does not read: it waits, and takes up its work or drops it afterwards.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "engine_scripted/mod.rs"]
mod scripted;

use scripted::{Faults, ScriptedModel, config, submit};
use shared::ipc::FromWorker;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use worker::engine::{EVENTS_MAX, Engine, EngineError, Event, MESSAGES_MAX, resident_bytes};

const DEADLINE: Duration = Duration::from_secs(20);
const TOKENS: u32 = 1000;

struct Running {
    events: mpsc::Sender<Event>,
    steps: Arc<AtomicUsize>,
    thread: JoinHandle<Result<(), EngineError>>,
}

fn start() -> Running {
    let config = config(2048, 1024, 4);
    let model = ScriptedModel::new(&config.limits, Faults::default());
    let steps = model.steps();
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let thread = std::thread::spawn(move || Engine::new(model, config, resident_bytes).run(receiver));
    Running { events, steps, thread }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// A gateway with a request of [`TOKENS`] tokens that reads nothing, once the engine waits for it.
fn stalled(running: &Running) -> mpsc::Receiver<FromWorker> {
    let (out, messages) = mpsc::channel(MESSAGES_MAX);
    running.events.blocking_send(Event::Connected(out)).unwrap();
    running.events.blocking_send(Event::Submit(Box::new(submit(1, &[1], TOKENS)))).unwrap();
    wait_until("the channel is full", || messages.len() == MESSAGES_MAX);
    messages
}

#[test]
fn the_engine_waits_for_a_gateway_that_does_not_read_and_loses_nothing() {
    let running = start();
    let mut messages = stalled(&running);
    // One message each step: the one after the full channel's is computed, and waits.
    assert!(running.steps.load(Ordering::Relaxed) <= MESSAGES_MAX + 1);
    let mut tokens = 0;
    loop {
        match messages.blocking_recv().unwrap() {
            FromWorker::Step { events, .. } => events.iter().for_each(|event| {
                assert_eq!(event.index, tokens);
                tokens += 1;
            }),
            FromWorker::Finished { .. } => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(tokens, TOKENS);
    drop(running.events);
    running.thread.join().unwrap().unwrap();
}

#[test]
fn a_gateway_that_goes_while_the_engine_waits_for_it_frees_the_engine() {
    let running = start();
    drop(stalled(&running));
    let (out, mut messages) = mpsc::channel(MESSAGES_MAX);
    running.events.blocking_send(Event::Connected(out)).unwrap();
    running.events.blocking_send(Event::Ping { nonce: 3 }).unwrap();
    match messages.blocking_recv().unwrap() {
        FromWorker::Pong { nonce, stats } => {
            assert_eq!((nonce, stats.running, stats.kv_blocks_free), (3, 0, stats.kv_blocks_total));
        }
        other => panic!("unexpected {other:?}"),
    }
    running.events.blocking_send(Event::Shutdown).unwrap();
    running.thread.join().unwrap().unwrap();
}
