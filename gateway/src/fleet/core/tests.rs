//! What delivering tokens costs under the lock, and how long a worker that is away is waited for.

use super::super::state::RETURN_WAIT;
use super::*;
use crate::routing::Outlook;
use futures_util::StreamExt;
use shared::ids::{Attempt, TokenId};
use shared::ipc::message::{RequestLimits, TokenEvent};
use shared::sampling::SamplingParams;
use std::task::{Context, Poll, Waker};

const STREAMS: u32 = 256;

/// A fleet of one worker that takes everything, and its queue of messages.
fn fleet() -> (Arc<Core>, mpsc::Receiver<ToWorker>) {
    let core = Arc::new(Core::new(1, QueueLimits::default()));
    let (outbound, queued) = mpsc::channel(4096);
    let model = ModelInfo {
        architecture: "arithmetic".to_owned(),
        name: "fake".to_owned(),
        parameters: 1,
        quantization: "F32".to_owned(),
        vocab_size: 50_000,
        context_train: 100_000,
        weight_bytes: 4,
    };
    let limits = WorkerLimits {
        context_tokens: 100_000,
        sequences: STREAMS,
        waiting: 0,
        kv_blocks: 1,
        kv_block_tokens: 1,
    };
    core.spawned(WorkerId(0), 1, None);
    core.arrived(WorkerId(0), Arrival { epoch: 1, outbound, model, limits });
    (core, queued)
}

fn request() -> TokenRequest {
    TokenRequest {
        prompt: vec![1; 100],
        sampling: SamplingParams::greedy(),
        limits: RequestLimits { max_tokens: 50_000, min_tokens: 0, stop_tokens: Vec::new(), priority: 0 },
        deadline: Duration::from_secs(600),
    }
}

fn step(index: u32) -> FromWorker {
    let token = |id| TokenEvent {
        id: RequestId(u64::from(id)),
        attempt: Attempt(0),
        index,
        token: index as TokenId,
        logprobs: None,
    };
    FromWorker::Step { events: (0..STREAMS).map(token).collect(), stats: EngineStats::default() }
}

/// Reads what is there; returns how many tokens.
fn drain(streams: &mut [TokenStream]) -> usize {
    let mut context = Context::from_waker(Waker::noop());
    let mut tokens = 0;
    for stream in streams {
        while let Poll::Ready(Some(_)) = stream.poll_next_unpin(&mut context) {
            tokens += 1;
        }
    }
    tokens
}

/// Takes the time of 2000 steps of 256 streams each, and returns nanoseconds a token.
fn token_ns() -> f64 {
    const STEPS: u32 = 2000;
    let (core, _queued) = fleet();
    let mut streams: Vec<TokenStream> =
        (0..STREAMS).map(|_| core.submit(request()).expect("taken")).collect();
    let mut spent = Duration::ZERO;
    for index in 0..STEPS {
        let message = step(index);
        let start = Instant::now();
        core.message(WorkerId(0), 1, message).expect("a sound step");
        spent += start.elapsed();
        assert_eq!(drain(&mut streams), STREAMS as usize);
    }
    spent.as_nanos() as f64 / f64::from(STEPS * STREAMS)
}

/// The limit is half of what 50,000 tokens a second leave of one core; unoptimized code keeps it too.
#[test]
fn a_token_costs_less_than_ten_microseconds() {
    let best = (0..3).map(|_| token_ns()).fold(f64::INFINITY, f64::min);
    println!("{best:.0} ns a token");
    assert!(best < 10_000.0, "{best} ns");
}

#[test]
fn a_worker_that_stays_away_is_not_waited_for() {
    let core = Core::new(1, QueueLimits::default());
    let check = |state: WorkerState, away: Duration, expected: Outlook| {
        core.set_state(WorkerId(0), state);
        assert_eq!(core.lock().outlook(Instant::now() + away), expected, "{state} after {away:?}");
    };
    let soon = RETURN_WAIT / 2;
    check(WorkerState::Starting, soon, Outlook::Returning);
    // One to attach to goes back and forth between these two for ever.
    check(WorkerState::Backoff, RETURN_WAIT, Outlook::Complete);
    check(WorkerState::Starting, RETURN_WAIT, Outlook::Complete);
    check(WorkerState::Ready, soon, Outlook::Complete);
    check(WorkerState::Crashed, soon, Outlook::Returning);
    check(WorkerState::Loading, RETURN_WAIT, Outlook::Complete);
    check(WorkerState::Failed, soon, Outlook::Complete);
}
