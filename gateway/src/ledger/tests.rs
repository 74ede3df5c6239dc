//! The ledger, one rule at a time. `routing::lives` plays it together with the router over whole lives of workers.

use super::*;
use shared::ipc::message::TokenEvent;
use std::cell::RefCell;
use std::rc::Rc;

/// What one consumer got.
#[derive(Debug, Default)]
struct Received {
    tokens: Vec<TokenId>,
    outcomes: Vec<Result<FinishReason, RequestError>>,
}

type Consumer = Rc<RefCell<Received>>;

const WORKERS: u32 = 3;
const STOP: TokenId = 9;
const PATIENCE: Patience = Patience { queue: Duration::from_secs(10), total: Duration::from_secs(60) };
const CRASH: Death<'static> = Death::Crash("signal 11 (SIGSEGV)");

fn work(max_tokens: u32) -> Work {
    Work {
        prompt: vec![1, 2, 3],
        prefix: Vec::new(),
        sampling: SamplingParams::greedy(),
        limits: RequestLimits { max_tokens, min_tokens: 0, stop_tokens: vec![STOP], priority: 0 },
        output_tokens_max: max_tokens,
    }
}

/// The token a faithful worker emits at `index`.
fn token_at(id: RequestId, index: usize) -> TokenId {
    100 + (id.0 as u32) * 1000 + index as u32
}

struct World {
    ledger: Ledger<Consumer>,
    consumers: Vec<Consumer>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self { ledger: Ledger::new(WORKERS as usize), consumers: Vec::new(), now: Instant::now() }
    }

    fn admit(&mut self, max_tokens: u32) {
        let id = RequestId(self.consumers.len() as u64);
        let consumer = Consumer::default();
        self.consumers.push(Rc::clone(&consumer));
        self.ledger.admit(id, work(max_tokens), PATIENCE, consumer, self.now);
    }

    /// The request that is next in turn, isolated ones last.
    fn next(&self) -> Option<RequestId> {
        let standings = [Standing::Clear, Standing::Suspect, Standing::Isolated];
        standings
            .into_iter()
            .find_map(|standing| self.ledger.next_waiting(standing, self.now))
            .map(|turn| turn.id)
    }

    fn assign(&mut self, worker: u32) -> Submit {
        let id = self.next().expect("a request waits");
        self.ledger.assign(id, WorkerId(worker)).expect("a waiting request can be assigned")
    }

    /// Request `id`, in its `attempt`, gets its next token from `worker`.
    fn emit(&mut self, worker: u32, id: u64, attempt: u32) {
        let id = RequestId(id);
        let index = self.consumers[id.0 as usize].borrow().tokens.len();
        let token = token_at(id, index);
        let event = TokenEvent { id, attempt: Attempt(attempt), index: index as u32, token, logprobs: None };
        match self.ledger.token(WorkerId(worker), &event) {
            TokenVerdict::Deliver(consumer) => consumer.borrow_mut().tokens.push(token),
            verdict => panic!("not delivered: {verdict:?}"),
        }
    }

    fn die(&mut self, worker: u32, death: Death<'_>) {
        let ended = self.ledger.release(WorkerId(worker), death, self.now).ended;
        self.deliver(ended);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let ended = self.ledger.expire(self.now);
        self.deliver(ended);
    }

    fn deliver(&mut self, ended: impl IntoIterator<Item = Ended<Consumer>>) {
        for ended in ended {
            ended.consumer.borrow_mut().outcomes.push(ended.outcome);
        }
    }
}

/// One request in worker 0 with `emitted` tokens out.
fn started(max_tokens: u32, emitted: usize) -> World {
    let mut world = World::new();
    world.admit(max_tokens);
    world.assign(0);
    for _ in 0..emitted {
        world.emit(0, 0, 0);
    }
    world
}

fn outcome(world: &World) -> Option<Result<FinishReason, RequestError>> {
    world.consumers[0].borrow().outcomes.first().cloned()
}

#[test]
fn a_gap_a_repetition_and_an_endless_output_break_the_protocol() {
    let check = |emitted: usize, index: u32, expected: &str| {
        let mut world = started(4, emitted);
        let event = TokenEvent { id: RequestId(0), attempt: Attempt(0), index, token: 5, logprobs: None };
        let TokenVerdict::Broken(reason) = world.ledger.token(WorkerId(0), &event) else {
            panic!("not noticed")
        };
        assert_eq!(reason, expected);
    };
    check(2, 3, "request 0 got token index 3, expected 2");
    check(2, 1, "request 0 got token index 1, expected 2");
    check(4, 4, "request 0 got token index 4, limit 4 tokens");
}

#[test]
fn a_request_that_crashes_workers_ends_with_the_last_reason() {
    let mut world = started(100, 3);
    world.die(0, CRASH);
    world.assign(1);
    world.die(1, CRASH);
    assert_eq!((outcome(&world), world.ledger.load(WorkerId(2)).alone), (None, None));
    assert_eq!(world.assign(2).emitted.len(), 3);
    assert_eq!(world.ledger.load(WorkerId(2)).alone, Some(RequestId(0)));
    world.die(2, Death::Crash("signal 6 (SIGABRT)"));
    let expected = RequestError::Poison { crashes: 3, last: "signal 6 (SIGABRT)".to_owned() };
    assert_eq!(outcome(&world), Some(Err(expected)));
    assert_eq!(world.ledger.load(WorkerId(2)), Load::default());
}

#[test]
fn kills_from_outside_never_condemn_a_request() {
    let mut world = started(100, 3);
    for _ in 0..20 {
        world.die(0, Death::Killed);
        world.now += Duration::from_secs(1);
        // Isolated now, and waiting for its next try as long as it takes.
        while world.next().is_none() && outcome(&world).is_none() {
            world.pass(Duration::from_secs(1));
        }
        if outcome(&world).is_none() {
            world.assign(0);
        }
    }
    assert_eq!(outcome(&world), Some(Err(RequestError::Deadline { deadline_ms: 60_000, emitted: 3 })));
}

#[test]
fn orders_to_end_leave_no_trace() {
    let mut world = started(100, 3);
    for attempt in 1..20 {
        world.die(0, Death::Ordered);
        assert_eq!(world.ledger.next_waiting(Standing::Clear, world.now).map(|turn| turn.id.0), Some(0));
        assert_eq!(world.assign(0).attempt, Attempt(attempt));
    }
}

#[test]
fn progress_lets_others_join_and_a_recalled_request_goes_on_where_it_was() {
    let mut world = started(100, 3);
    world.die(0, CRASH);
    world.assign(0);
    world.die(0, CRASH);
    world.assign(0);
    // Three in the run that crashed first, and twelve.
    for _ in 0..14 {
        world.emit(0, 0, 2);
    }
    assert!(world.ledger.is_isolating() && world.ledger.take_cleared().is_empty());
    world.emit(0, 0, 2);
    assert!(!world.ledger.is_isolating());
    let cleared = Cleared { id: RequestId(0), was: Standing::Isolated };
    assert_eq!((world.ledger.take_cleared(), world.ledger.take_cleared()), (vec![cleared], vec![]));
    let (placement, ended) = world.ledger.recall(RequestId(0)).expect("it is in a worker");
    assert_eq!(placement, Placement { worker: WorkerId(0), attempt: Attempt(2) });
    assert!(ended.is_none());
    assert_eq!(world.ledger.load(WorkerId(0)), Load::default());
    let again = world.assign(1);
    assert_eq!((again.attempt, again.emitted.len()), (Attempt(3), 18));
}

#[test]
fn a_suspects_place_is_free_once_it_is_cleared() {
    let mut world = started(100, 0);
    world.die(0, CRASH);
    world.assign(0);
    assert_eq!(world.ledger.load(WorkerId(0)).suspects, 1);
    for _ in 0..12 {
        world.emit(0, 0, 1);
    }
    assert_eq!((world.ledger.load(WorkerId(0)).suspects, world.ledger.load(WorkerId(0)).requests), (0, 1));
}

#[test]
fn an_output_that_was_complete_when_its_worker_died_is_not_resumed() {
    let mut world = started(4, 4);
    world.die(0, CRASH);
    assert_eq!(outcome(&world), Some(Ok(FinishReason::Length)));

    let mut world = started(4, 0);
    let event = TokenEvent { id: RequestId(0), attempt: Attempt(0), index: 0, token: STOP, logprobs: None };
    assert!(matches!(world.ledger.token(WorkerId(0), &event), TokenVerdict::Deliver(_)));
    world.die(0, Death::Killed);
    assert_eq!(outcome(&world), Some(Ok(FinishReason::Stop)));
}

#[test]
fn a_context_that_filled_up_before_the_crash_is_a_length_finish() {
    let too_long = Rejection::TooLong { prompt_tokens: 9, context_tokens: 8 };
    let mut world = started(100, 0);
    let ended = world.ledger.reject((WorkerId(0), RequestId(0), Attempt(0)), too_long.clone());
    assert_eq!(ended.expect("ends").outcome, Err(RequestError::Rejected(too_long.clone())));

    let mut world = started(100, 3);
    world.die(0, Death::Killed);
    world.assign(1);
    let ended = world.ledger.reject((WorkerId(1), RequestId(0), Attempt(1)), too_long);
    assert_eq!(ended.expect("ends").outcome, Ok(FinishReason::Length));
}

#[test]
fn waiting_for_a_place_and_the_whole_request_have_their_own_deadlines() {
    let mut world = World::new();
    world.admit(5);
    world.pass(PATIENCE.queue);
    assert_eq!(outcome(&world), Some(Err(RequestError::QueueTimeout { waited_ms: 10_000 })));

    let mut world = started(5, 2);
    world.pass(PATIENCE.queue);
    world.die(0, Death::Killed);
    world.pass(PATIENCE.queue);
    assert_eq!(outcome(&world), None, "a resumed request waits for its own deadline");
    world.pass(PATIENCE.total);
    assert_eq!(outcome(&world), Some(Err(RequestError::Deadline { deadline_ms: 60_000, emitted: 2 })));
}

#[test]
fn smaller_priority_first_then_older_and_a_resumed_request_before_newer_ones() {
    let mut world = World::new();
    world.admit(5);
    world.admit(5);
    let urgent = Work { limits: RequestLimits { priority: -1, ..work(5).limits }, ..work(5) };
    world.ledger.admit(RequestId(7), urgent, PATIENCE, Consumer::default(), world.now);
    assert_eq!(world.next(), Some(RequestId(7)));
    world.ledger.remove(RequestId(7));
    world.assign(0);
    assert_eq!(world.next(), Some(RequestId(1)));
    world.die(0, Death::Killed);
    assert_eq!(world.next(), Some(RequestId(0)));
}

#[test]
fn load_counts_the_prompt_until_the_first_token_and_then_what_is_left() {
    let mut world = started(5, 0);
    assert_eq!(world.ledger.load(WorkerId(0)), Load { requests: 1, tokens: 8, ..Load::default() });
    world.emit(0, 0, 0);
    assert_eq!(world.ledger.load(WorkerId(0)), Load { requests: 1, tokens: 4, ..Load::default() });
    world.emit(0, 0, 0);
    assert_eq!(world.ledger.load(WorkerId(0)), Load { requests: 1, tokens: 3, ..Load::default() });
}
