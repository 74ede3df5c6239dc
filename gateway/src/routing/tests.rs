//! Routing for small fleets, one decision at a time; `lives` plays whole lives.

use super::*;
use crate::ledger::{Death, Patience, Work};
use proptest::prelude::*;
use shared::ids::TokenId;
use shared::ipc::message::RequestLimits;
use shared::sampling::SamplingParams;
use std::time::Duration;

const LIMITS: WorkerLimits =
    WorkerLimits { context_tokens: 100_000, sequences: 4, waiting: 64, kv_blocks: 1, kv_block_tokens: 1 };

/// A ledger and a router over some workers, all of them ready.
struct Desk {
    ledger: Ledger<()>,
    router: Router,
    workers: u32,
    next_id: u64,
    now: Instant,
}

impl Desk {
    fn new(workers: u32) -> Self {
        Self {
            ledger: Ledger::new(workers as usize),
            router: Router::default(),
            workers,
            next_id: 0,
            now: Instant::now(),
        }
    }

    fn admit(&mut self, prompt: Vec<TokenId>) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let limits = RequestLimits { max_tokens: 100, min_tokens: 0, stop_tokens: Vec::new(), priority: 0 };
        let prefix = prefix_hashes(&prompt);
        let work =
            Work { prompt, prefix, sampling: SamplingParams::greedy(), limits, output_tokens_max: 100 };
        let patience = Patience { queue: Duration::from_secs(60), total: Duration::from_secs(600) };
        self.ledger.admit(id, work, patience, (), self.now);
        id
    }

    fn candidates(&self) -> Vec<Candidate> {
        let candidate =
            |worker| Candidate { worker, load: self.ledger.load(worker), places: Places::of(&LIMITS) };
        (0..self.workers).map(WorkerId).map(candidate).collect()
    }

    /// Hands out the next request among the workers for which `open` holds.
    fn next_among(&mut self, outlook: Outlook, open: impl Fn(WorkerId) -> bool) -> Option<Decision> {
        let candidates: Vec<Candidate> =
            self.candidates().into_iter().filter(|candidate| open(candidate.worker)).collect();
        let decision = self.router.next(&self.ledger, &candidates, outlook, self.now)?;
        self.ledger.assign(decision.id, decision.worker).expect("waits");
        self.router.placed(self.ledger.prefix(decision.id), decision.worker);
        Some(decision)
    }

    fn next(&mut self) -> Option<Decision> {
        self.next_among(Outlook::Complete, |_| true)
    }

    fn crash(&mut self, worker: u32) {
        let death = Death::Crash("signal 11 (SIGSEGV)");
        let released = self.ledger.release(WorkerId(worker), death, self.now);
        assert!(released.ended.is_empty());
        self.router.lost(WorkerId(worker), released.blow);
    }

    fn held(&self, worker: u32) -> Load {
        self.ledger.load(WorkerId(worker))
    }
}

fn prompt(seed: u32, tokens: usize) -> Vec<TokenId> {
    (0..tokens as u32).map(|index| seed * 100_000 + index).collect()
}

fn decided(decision: Option<Decision>) -> Option<(u64, u32, Reason)> {
    decision.map(|Decision { id, worker, reason }| (id.0, worker.0, reason))
}

#[test]
fn the_least_outstanding_tokens_win_among_workers_with_a_place() {
    let mut desk = Desk::new(2);
    for tokens in [200, 10, 10, 10] {
        desk.admit(prompt(tokens, tokens as usize));
    }
    let workers: Vec<u32> = std::iter::from_fn(|| desk.next()).map(|decision| decision.worker.0).collect();
    assert_eq!(workers, [0, 1, 1, 1], "300 tokens against 0, 110 and 220");
    for _ in 0..20 {
        desk.admit(prompt(1, 10));
    }
    let handed = std::iter::from_fn(|| desk.next()).count();
    assert_eq!(handed, 8, "four sequences and two ahead in each worker");
}

#[test]
fn a_worker_is_handed_little_more_than_it_computes_and_few_suspects() {
    let places = |sequences, waiting| {
        let places = Places::of(&WorkerLimits { sequences, waiting, ..LIMITS });
        (places.requests, places.suspects)
    };
    assert_eq!(places(16, 1000), (18, 4));
    assert_eq!(places(16, 1), (17, 4));
    assert_eq!(places(64, 8), (66, 8));
    assert_eq!(places(0, 0), (1, 1));
    assert_eq!(places(u32::MAX, 9), (u32::MAX as usize, 65_535));
}

#[test]
fn a_cached_beginning_attracts_until_it_costs_more_than_it_saves() {
    let mut desk = Desk::new(2);
    desk.admit(prompt(1, 1024));
    assert_eq!(decided(desk.next()), Some((0, 0, Reason::Load)));
    // 1124 tokens ahead in worker 0, of the next prompt 1024 cached.
    desk.admit(prompt(1, 1024));
    assert_eq!(decided(desk.next()), Some((1, 1, Reason::Load)), "1124 is more than 0 and 1024 saved");
    // Both have it now, and as much to do.
    desk.admit(prompt(1, 1024));
    assert_eq!(decided(desk.next()), Some((2, 0, Reason::Prefix)));
    desk.admit(prompt(2, 100));
    assert_eq!(
        decided(desk.next()),
        Some((3, 1, Reason::Load)),
        "short prompts go where there is least to do"
    );
    desk.crash(1);
    desk.admit(prompt(1, 1024));
    let first = desk.next_among(Outlook::Complete, |worker| worker.0 == 1);
    assert_eq!(decided(first), Some((1, 1, Reason::Load)), "its cache is gone");
}

#[test]
fn suspects_of_a_crash_are_spread_and_others_overtake_those_that_have_no_place() {
    let mut desk = Desk::new(2);
    for number in 0..6 {
        desk.admit(prompt(number, 10));
        desk.next_among(Outlook::Complete, |worker| worker.0 == 0).expect("placed");
    }
    desk.crash(0);
    let fresh = desk.admit(prompt(9, 10));
    let placed: Vec<u64> = std::iter::from_fn(|| desk.next()).map(|decision| decision.id.0).collect();
    assert_eq!(placed, [0, 1, 2, 3, fresh.0]);
    assert_eq!((desk.held(0).suspects, desk.held(1).suspects), (2, 2));
}

/// Two requests that were in worker 0 in two crashes, and one in worker 1.
fn twice_suspected() -> Desk {
    let mut desk = Desk::new(2);
    desk.admit(prompt(0, 10));
    desk.admit(prompt(1, 10));
    for _ in 0..2 {
        while desk.next_among(Outlook::Returning, |worker| worker.0 == 0).is_some() {}
        assert_eq!(desk.held(0).requests, 2);
        desk.crash(0);
    }
    desk.admit(prompt(2, 10));
    assert_eq!(
        decided(desk.next_among(Outlook::Returning, |worker| worker.0 == 1)),
        Some((0, 1, Reason::Alone))
    );
    desk
}

#[test]
fn isolated_requests_run_one_at_a_time_and_nothing_joins_them() {
    let mut desk = twice_suspected();
    assert_eq!(desk.held(1).alone, Some(RequestId(0)));
    assert_eq!(decided(desk.next()), Some((2, 0, Reason::Load)), "others use the other worker");
    assert_eq!(decided(desk.next()), None, "the second waits for the first");
    desk.ledger.remove(RequestId(0));
    assert_eq!(decided(desk.next()), Some((1, 1, Reason::Alone)));
}

#[test]
fn a_worker_is_emptied_only_where_none_is_on_its_way_back() {
    let mut desk = twice_suspected();
    assert_eq!(decided(desk.next()), Some((2, 0, Reason::Load)));
    // Worker 1 is away from here on.
    desk.ledger.remove(RequestId(0));
    desk.admit(prompt(3, 10));
    let only_busy = |worker: WorkerId| worker.0 == 0;
    assert_eq!(decided(desk.next_among(Outlook::Returning, only_busy)), Some((3, 0, Reason::Load)));
    desk.admit(prompt(4, 10));
    assert_eq!(decided(desk.next_among(Outlook::Complete, only_busy)), None, "nothing new for it");
    desk.ledger.remove(RequestId(2));
    desk.ledger.remove(RequestId(3));
    assert_eq!(decided(desk.next_among(Outlook::Complete, only_busy)), Some((1, 0, Reason::Alone)));
}

#[test]
fn after_an_isolated_request_cost_a_worker_the_others_come_first() {
    let mut desk = Desk::new(1);
    desk.admit(prompt(0, 10));
    for _ in 0..4 {
        desk.next().expect("placed");
        let released = desk.ledger.release(WorkerId(0), Death::Killed, desk.now);
        desk.router.lost(WorkerId(0), released.blow);
        desk.now += Duration::from_secs(30);
    }
    let others: Vec<u64> = (0..10).map(|number| desk.admit(prompt(number, 10)).0).collect();
    let placed: Vec<u64> = std::iter::from_fn(|| desk.next()).map(|decision| decision.id.0).collect();
    assert_eq!(placed, others[..6], "though it is due and came first");
    for id in &others[..6] {
        assert_eq!(decided(desk.next()), None, "now nothing new comes until it had its turn");
        desk.ledger.remove(RequestId(*id));
    }
    assert_eq!(decided(desk.next()), Some((0, 0, Reason::Alone)));
}

proptest! {
    /// Whatever is held where: a choice has a place, and by affinity it is never behind by more than it saves.
    #[test]
    fn affinity_never_overloads_a_worker(
        seeds in prop::collection::vec((0u32..4, 1usize..2_000), 1..60),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut desk = Desk::new(3);
        let mut ends = ends.into_iter();
        for (seed, tokens) in seeds {
            desk.admit(prompt(seed, tokens));
            let before = desk.candidates();
            let least = before
                .iter()
                .filter(|candidate| candidate.load.requests < candidate.places.requests)
                .map(|candidate| candidate.load.tokens)
                .min();
            match desk.next() {
                None => prop_assert_eq!(least, None, "nobody had a place"),
                Some(Decision { id, worker, reason }) => {
                    let chosen = before[worker.0 as usize];
                    prop_assert!(chosen.load.requests < chosen.places.requests);
                    let lead = chosen.load.tokens - least.expect("a worker had a place");
                    let saved = desk.ledger.prefix(id).len() * CHUNK_TOKENS;
                    let limit = if reason == Reason::Prefix { saved as u64 } else { 0 };
                    prop_assert!(lead <= limit, "{} tokens more than the least, {} saved", lead, saved);
                }
            }
            if let Some(end) = ends.next() {
                desk.ledger.remove(RequestId(end.index(desk.next_id as usize) as u64));
            }
        }
    }
}
