//! The ledger against workers that crash, lie about attempts and interleave as they like.

use super::*;
use proptest::prelude::*;
use shared::ipc::message::TokenEvent;
use std::cell::RefCell;
use std::rc::Rc;

/// What one consumer got.
#[derive(Debug, Default)]
struct Received {
    tokens: Vec<TokenId>,
    outcomes: Vec<Result<FinishReason, RequestError>>,
    cancelled: bool,
}

type Consumer = Rc<RefCell<Received>>;

const WORKERS: u32 = 3;
const CRASHES_MAX: u32 = 3;

fn work(max_tokens: u32) -> Work {
    Work {
        prompt: vec![1, 2, 3],
        sampling: SamplingParams::greedy(),
        limits: RequestLimits { max_tokens, min_tokens: 0, stop_tokens: vec![STOP], priority: 0 },
        output_tokens_max: max_tokens,
    }
}

const STOP: TokenId = 9;
const PATIENCE: Patience = Patience { queue: Duration::from_secs(10), total: Duration::from_secs(60) };

/// The token a faithful worker emits at `index`: the same in every attempt.
fn token_at(id: RequestId, index: usize) -> TokenId {
    100 + (id.0 as u32) * 1000 + index as u32
}

/// A worker's side of one request.
#[derive(Debug, Clone)]
struct Job {
    id: RequestId,
    attempt: Attempt,
    next: usize,
    max_tokens: u32,
}

struct World {
    ledger: Ledger<Consumer>,
    consumers: Vec<Consumer>,
    /// What each worker computes now.
    jobs: Vec<Vec<Job>>,
    /// Jobs of lives that are over, whose events may still arrive.
    ghosts: Vec<(WorkerId, Job)>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(WORKERS as usize),
            consumers: Vec::new(),
            jobs: vec![Vec::new(); WORKERS as usize],
            ghosts: Vec::new(),
            now: Instant::now(),
        }
    }

    fn admit(&mut self, max_tokens: u32) {
        let id = RequestId(self.consumers.len() as u64);
        let consumer = Consumer::default();
        self.consumers.push(Rc::clone(&consumer));
        self.ledger.admit(id, work(max_tokens), PATIENCE, consumer, self.now);
    }

    fn assign(&mut self, worker: u32) {
        let Some(id) = self.ledger.next_waiting() else { return };
        let submit = self.ledger.assign(id, WorkerId(worker)).expect("a waiting request can be assigned");
        assert_eq!(
            submit.emitted,
            self.consumers[id.0 as usize].borrow().tokens,
            "resumes with what was delivered"
        );
        let next = submit.emitted.len();
        let max_tokens = submit.limits.max_tokens;
        self.jobs[worker as usize].push(Job { id, attempt: submit.attempt, next, max_tokens });
    }

    fn emit(&mut self, worker: WorkerId, job: &Job) {
        let event = TokenEvent {
            id: job.id,
            attempt: job.attempt,
            index: job.next as u32,
            token: token_at(job.id, job.next),
            logprobs: None,
        };
        match self.ledger.token(worker, &event) {
            TokenVerdict::Deliver(consumer) => consumer.borrow_mut().tokens.push(event.token),
            TokenVerdict::Stale => {}
            TokenVerdict::Broken(reason) => panic!("a faithful worker broke the protocol: {reason}"),
        }
    }

    /// Worker `worker` makes its `pick`-th job go on by one token, or says that it is done.
    fn advance(&mut self, worker: u32, pick: usize) {
        let jobs = &mut self.jobs[worker as usize];
        if jobs.is_empty() {
            return;
        }
        let index = pick % jobs.len();
        if jobs[index].next < jobs[index].max_tokens as usize {
            let job = jobs[index].clone();
            jobs[index].next += 1;
            self.emit(WorkerId(worker), &job);
        } else {
            let job = jobs.swap_remove(index);
            let ended = self.ledger.finish((WorkerId(worker), job.id, job.attempt), FinishReason::Length);
            self.deliver(ended);
        }
    }

    /// An event of a life that is over arrives late.
    fn haunt(&mut self, pick: usize) {
        if self.ghosts.is_empty() {
            return;
        }
        let (worker, job) = self.ghosts[pick % self.ghosts.len()].clone();
        self.emit(worker, &job);
        let ended = self.ledger.finish((worker, job.id, job.attempt), FinishReason::Stop);
        assert!(ended.is_none(), "a stale finish ended request {}", job.id);
        let ended = self.ledger.reject((worker, job.id, job.attempt), Rejection::Draining);
        assert!(ended.is_none());
    }

    fn crash(&mut self, worker: u32, crash: Option<&str>) {
        let jobs = std::mem::take(&mut self.jobs[worker as usize]);
        self.ghosts.extend(jobs.into_iter().map(|job| (WorkerId(worker), job)));
        let ended = self.ledger.release(WorkerId(worker), crash, CRASHES_MAX);
        self.deliver(ended);
    }

    fn reject(&mut self, worker: u32, pick: usize) {
        let jobs = &mut self.jobs[worker as usize];
        if jobs.is_empty() {
            return;
        }
        let index = pick % jobs.len();
        let job = jobs.swap_remove(index);
        let full = Rejection::Overloaded { waiting: 1, limit: 1 };
        let ended = self.ledger.reject((WorkerId(worker), job.id, job.attempt), full);
        self.deliver(ended);
    }

    fn cancel(&mut self, pick: usize) {
        if self.consumers.is_empty() {
            return;
        }
        let id = RequestId((pick % self.consumers.len()) as u64);
        if let Some((consumer, placement)) = self.ledger.remove(id) {
            consumer.borrow_mut().cancelled = true;
            if let Some(placement) = placement {
                self.stop_job(id, placement);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let ended = self.ledger.expire(self.now);
        self.deliver(ended);
    }

    fn stop_job(&mut self, id: RequestId, placement: Placement) {
        let jobs = &mut self.jobs[placement.worker.0 as usize];
        let index = jobs.iter().position(|job| job.id == id && job.attempt == placement.attempt);
        let job = jobs.swap_remove(index.expect("the ledger knows where a request is"));
        self.ghosts.push((placement.worker, job));
    }

    fn deliver(&mut self, ended: impl IntoIterator<Item = Ended<Consumer>>) {
        for ended in ended {
            if let Some(placement) = ended.placement {
                self.stop_job(ended.id, placement);
            }
            ended.consumer.borrow_mut().outcomes.push(ended.outcome);
        }
    }

    fn check(&self) {
        let in_workers: usize = self.jobs.iter().map(Vec::len).sum();
        assert_eq!(self.ledger.len(), in_workers + self.ledger.waiting().requests);
        for worker in 0..WORKERS {
            let load = self.ledger.load(WorkerId(worker));
            assert_eq!(load.requests, self.jobs[worker as usize].len());
            assert!(load.requests > 0 || load.tokens == 0, "load left behind");
        }
        assert!(self.ledger.waiting().requests > 0 || self.ledger.waiting().tokens == 0);
        for (index, consumer) in self.consumers.iter().enumerate() {
            let received = consumer.borrow();
            let expected: Vec<TokenId> =
                (0..received.tokens.len()).map(|at| token_at(RequestId(index as u64), at)).collect();
            assert_eq!(received.tokens, expected, "each index once and in order");
            assert!(received.outcomes.len() + usize::from(received.cancelled) <= 1);
        }
    }

    /// Lets every request that is left run to its end.
    fn run_out(&mut self) {
        while self.ledger.len() > 0 {
            self.assign(0);
            for worker in 0..WORKERS {
                self.advance(worker, 0);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Admit(u32),
    Assign(u32),
    Advance(u32, usize),
    Haunt(usize),
    Crash(u32),
    Kill(u32),
    Reject(u32, usize),
    Cancel(usize),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let worker = 0..WORKERS;
    prop_oneof![
        4 => (1u32..6).prop_map(Op::Admit),
        6 => worker.clone().prop_map(Op::Assign),
        16 => (worker.clone(), any::<usize>()).prop_map(|(worker, pick)| Op::Advance(worker, pick)),
        3 => any::<usize>().prop_map(Op::Haunt),
        1 => worker.clone().prop_map(Op::Crash),
        1 => worker.clone().prop_map(Op::Kill),
        1 => (worker, any::<usize>()).prop_map(|(worker, pick)| Op::Reject(worker, pick)),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => (0u64..8000).prop_map(Op::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_index_once_and_one_outcome_whatever_happens(ops in prop::collection::vec(op(), 0..200)) {
        let mut world = World::new();
        for op in ops {
            match op {
                Op::Admit(max_tokens) => world.admit(max_tokens),
                Op::Assign(worker) => world.assign(worker),
                Op::Advance(worker, pick) => world.advance(worker, pick),
                Op::Haunt(pick) => world.haunt(pick),
                Op::Crash(worker) => world.crash(worker, Some("signal 11 (SIGSEGV)")),
                Op::Kill(worker) => world.crash(worker, None),
                Op::Reject(worker, pick) => world.reject(worker, pick),
                Op::Cancel(pick) => world.cancel(pick),
                Op::Pass(ms) => world.pass(Duration::from_millis(ms)),
            }
            world.check();
        }
        world.run_out();
        world.check();
        for consumer in &world.consumers {
            let received = consumer.borrow();
            prop_assert_eq!(received.outcomes.len() + usize::from(received.cancelled), 1);
        }
    }
}

/// One request in worker 0 with `emitted` tokens out.
fn started(max_tokens: u32, emitted: usize) -> World {
    let mut world = World::new();
    world.admit(max_tokens);
    world.assign(0);
    for _ in 0..emitted {
        world.advance(0, 0);
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
fn a_request_that_keeps_crashing_workers_ends_with_the_last_reason() {
    let mut world = started(100, 3);
    for _ in 1..CRASHES_MAX {
        world.crash(0, Some("signal 11 (SIGSEGV)"));
        assert_eq!(outcome(&world), None);
        world.assign(0);
    }
    world.crash(0, Some("signal 6 (SIGABRT)"));
    let expected =
        RequestError::WorkerCrashed { crashes: CRASHES_MAX, last: "signal 6 (SIGABRT)".to_owned() };
    assert_eq!(outcome(&world), Some(Err(expected)));
}

#[test]
fn kills_from_outside_never_condemn_a_request() {
    let mut world = started(100, 3);
    for _ in 0..20 {
        world.crash(0, None);
        world.assign(0);
    }
    world.run_out();
    assert_eq!(outcome(&world), Some(Ok(FinishReason::Length)));
}

#[test]
fn an_output_that_was_complete_when_its_worker_died_is_not_resumed() {
    let mut world = started(4, 4);
    world.crash(0, Some("signal 11 (SIGSEGV)"));
    assert_eq!(outcome(&world), Some(Ok(FinishReason::Length)));

    let mut world = started(4, 0);
    let event = TokenEvent { id: RequestId(0), attempt: Attempt(0), index: 0, token: STOP, logprobs: None };
    assert!(matches!(world.ledger.token(WorkerId(0), &event), TokenVerdict::Deliver(_)));
    world.crash(0, None);
    assert_eq!(outcome(&world), Some(Ok(FinishReason::Stop)));
}

#[test]
fn a_context_that_filled_up_before_the_crash_is_a_length_finish() {
    let too_long = Rejection::TooLong { prompt_tokens: 9, context_tokens: 8 };
    let mut world = started(100, 0);
    let ended = world.ledger.reject((WorkerId(0), RequestId(0), Attempt(0)), too_long.clone());
    assert_eq!(ended.expect("ends").outcome, Err(RequestError::Rejected(too_long.clone())));

    let mut world = started(100, 3);
    world.crash(0, None);
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
    world.crash(0, None);
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
    assert_eq!(world.ledger.next_waiting(), Some(RequestId(7)));
    world.ledger.remove(RequestId(7));
    world.assign(0);
    assert_eq!(world.ledger.next_waiting(), Some(RequestId(1)));
    world.crash(0, None);
    assert_eq!(world.ledger.next_waiting(), Some(RequestId(0)));
}

#[test]
fn load_counts_the_prompt_until_the_first_token_and_then_what_is_left() {
    let mut world = started(5, 0);
    assert_eq!(world.ledger.load(WorkerId(0)), Load { requests: 1, tokens: 8 });
    world.advance(0, 0);
    assert_eq!(world.ledger.load(WorkerId(0)), Load { requests: 1, tokens: 4 });
    world.advance(0, 0);
    assert_eq!(world.ledger.load(WorkerId(0)), Load { requests: 1, tokens: 3 });
}
