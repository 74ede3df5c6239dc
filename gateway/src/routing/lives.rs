//! Whole lives of workers and requests, played at random: ledger and router over workers that compute, crash, are
//! killed, come back, refuse, lose their last words and speak after their death. Some requests are bad; the model knows
//! which, and how many crashes each of them caused.

use super::*;
use crate::ledger::{Death, Ended, Patience, Placement, RequestError, TokenVerdict, Work};
use proptest::prelude::*;
use shared::ids::{Attempt, TokenId};
use shared::ipc::message::{FinishReason, Rejection, RequestLimits, Submit, TokenEvent};
use shared::sampling::SamplingParams;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const LIMITS: WorkerLimits =
    WorkerLimits { context_tokens: 100_000, sequences: 4, waiting: 8, kv_blocks: 1, kv_block_tokens: 1 };
/// Most steps of a worker that any of the plays below may need.
const STEPS_MAX: usize = 1_000_000;
const PATIENCE: Patience = Patience { queue: Duration::from_secs(3600), total: Duration::from_secs(7200) };
const CRASH: Death<'static> = Death::Crash("signal 11 (SIGSEGV)");

/// What a request does to the worker that computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Harmless,
    /// Crashes it at this index of its output, 0 being its prompt.
    CrashesAt(usize),
    /// Crashes it after so many tokens of each run.
    CrashesAfter(usize),
    /// Has it killed by the kernel, at its prompt.
    EatsMemory,
}

/// What one consumer got.
#[derive(Debug, Default, PartialEq)]
struct Received {
    tokens: Vec<TokenId>,
    outcomes: Vec<Result<FinishReason, RequestError>>,
}

#[derive(Debug)]
struct Client {
    nature: Nature,
    max_tokens: u32,
    received: Rc<RefCell<Received>>,
    cancelled: bool,
    crashes_caused: u32,
}

/// A worker's process.
#[derive(Debug, Default)]
struct Process {
    jobs: Vec<Job>,
    /// What the last step emitted, still on its way to the gateway.
    on_its_way: Vec<TokenEvent>,
}

#[derive(Debug, Clone)]
struct Job {
    submit: Submit,
    run_start: usize,
}

struct World {
    ledger: Ledger<Rc<RefCell<Received>>>,
    router: Router,
    /// `None` while there is no process.
    workers: Vec<Option<Process>>,
    clients: Vec<Client>,
    /// Messages of lives that are over.
    ghosts: Vec<(WorkerId, RequestId, Attempt)>,
    now: Instant,
}

fn token_at(id: RequestId, index: usize) -> TokenId {
    100 + (id.0 as u32) * 1000 + index as u32
}

impl World {
    fn new(workers: usize) -> Self {
        Self {
            ledger: Ledger::new(workers),
            router: Router::default(),
            workers: (0..workers).map(|_| Some(Process::default())).collect(),
            clients: Vec::new(),
            ghosts: Vec::new(),
            now: Instant::now(),
        }
    }

    fn admit(&mut self, nature: Nature, max_tokens: u32) {
        let id = RequestId(self.clients.len() as u64);
        let received = Rc::<RefCell<Received>>::default();
        let limits = RequestLimits { max_tokens, min_tokens: 0, stop_tokens: Vec::new(), priority: 0 };
        let prompt = vec![1; if id.0.is_multiple_of(3) { 300 } else { 5 }];
        let prefix = prefix_hashes(&prompt);
        let sampling = SamplingParams::greedy();
        let work = Work { prompt, prefix, sampling, limits, output_tokens_max: max_tokens };
        self.ledger.admit(id, work, PATIENCE, Rc::clone(&received), self.now);
        self.clients.push(Client { nature, max_tokens, received, cancelled: false, crashes_caused: 0 });
    }

    /// What `fleet::state` does after each event.
    fn dispatch(&mut self) {
        for cleared in self.ledger.take_cleared() {
            let others = self.ledger.next_waiting(Standing::Isolated, self.now).is_some();
            if cleared.was == Standing::Isolated
                && others
                && let Some((placement, ended)) = self.ledger.recall(cleared.id)
            {
                self.stop_job(cleared.id, placement);
                self.deliver(ended);
            }
        }
        loop {
            let candidate = |(index, process): (usize, &Option<Process>)| {
                let worker = WorkerId(index as u32);
                process.as_ref()?;
                Some(Candidate { worker, load: self.ledger.load(worker), places: Places::of(&LIMITS) })
            };
            let candidates: Vec<Candidate> = self.workers.iter().enumerate().filter_map(candidate).collect();
            let outlook = match candidates.len() == self.workers.len() {
                true => Outlook::Complete,
                false => Outlook::Returning,
            };
            let Some(decision) = self.router.next(&self.ledger, &candidates, outlook, self.now) else {
                return;
            };
            let submit = self.ledger.assign(decision.id, decision.worker).expect("waits");
            self.router.placed(self.ledger.prefix(decision.id), decision.worker);
            let delivered = self.clients[decision.id.0 as usize].received.borrow().tokens.clone();
            assert_eq!(submit.emitted, delivered, "resumes with what was delivered");
            let process = self.workers[decision.worker.0 as usize].as_mut().expect("ready");
            process.jobs.push(Job { run_start: submit.emitted.len(), submit });
        }
    }

    /// What was emitted arrives, and so do the ends of what is complete.
    fn arrive(&mut self, worker: usize) {
        let Some(process) = &mut self.workers[worker] else { return };
        let events = std::mem::take(&mut process.on_its_way);
        let id = WorkerId(worker as u32);
        for event in events {
            match self.ledger.token(id, &event) {
                TokenVerdict::Deliver(received) => received.borrow_mut().tokens.push(event.token),
                TokenVerdict::Stale => {}
                TokenVerdict::Broken(reason) => panic!("a faithful worker broke the protocol: {reason}"),
            }
        }
        let complete = |job: &Job| job.submit.emitted.len() >= job.submit.limits.max_tokens as usize;
        let process = self.workers[worker].as_mut().expect("present");
        let (done, left) = std::mem::take(&mut process.jobs).into_iter().partition(complete);
        process.jobs = left;
        let done: Vec<Job> = done;
        for Job { submit, .. } in done {
            let ended = self.ledger.finish((id, submit.id, submit.attempt), FinishReason::Length);
            self.deliver(ended);
        }
    }

    /// One step of a worker, over as many of its jobs as it computes at once.
    fn step(&mut self, worker: usize, last_words: LastWords) {
        self.arrive(worker);
        let Some(process) = &mut self.workers[worker] else { return };
        let mut fatal = None;
        for job in process.jobs.iter_mut().take(LIMITS.sequences as usize) {
            let client = &mut self.clients[job.submit.id.0 as usize];
            let index = job.submit.emitted.len();
            fatal = match client.nature {
                Nature::CrashesAt(at) if index == at => Some(CRASH),
                Nature::CrashesAfter(run) if index - job.run_start == run => Some(CRASH),
                Nature::EatsMemory => Some(Death::Killed),
                _ => None,
            };
            if fatal.is_some() {
                client.crashes_caused += 1;
                break;
            }
        }
        if let Some(death) = fatal {
            return self.die(worker, death, last_words);
        }
        for job in process.jobs.iter_mut().take(LIMITS.sequences as usize) {
            let (id, attempt, index) = (job.submit.id, job.submit.attempt, job.submit.emitted.len());
            let token = token_at(id, index);
            job.submit.emitted.push(token);
            process.on_its_way.push(TokenEvent { id, attempt, index: index as u32, token, logprobs: None });
        }
        if last_words == LastWords::Heard {
            self.arrive(worker);
        }
        self.dispatch();
    }

    fn die(&mut self, worker: usize, death: Death<'_>, last_words: LastWords) {
        if last_words == LastWords::Heard {
            self.arrive(worker);
        }
        let Some(process) = self.workers[worker].take() else { return };
        let id = WorkerId(worker as u32);
        self.ghosts.extend(process.jobs.iter().map(|job| (id, job.submit.id, job.submit.attempt)));
        let released = self.ledger.release(id, death, self.now);
        self.router.lost(id, released.blow);
        self.deliver(released.ended);
        self.dispatch();
    }

    fn come_back(&mut self, worker: usize) {
        self.workers[worker].get_or_insert_default();
        self.dispatch();
    }

    /// A message of a life that is over arrives late.
    fn haunt(&mut self, pick: usize) {
        let Some(&(worker, id, attempt)) = self.ghosts.get(pick % self.ghosts.len().max(1)) else { return };
        let index = self.clients[id.0 as usize].received.borrow().tokens.len() as u32;
        let event = TokenEvent { id, attempt, index, token: 1, logprobs: None };
        assert_eq!(self.ledger.token(worker, &event), TokenVerdict::Stale);
        assert!(self.ledger.finish((worker, id, attempt), FinishReason::Stop).is_none());
        assert!(self.ledger.reject((worker, id, attempt), Rejection::Draining).is_none());
    }

    fn reject(&mut self, worker: usize) {
        let Some(job) = self.workers[worker].as_mut().and_then(|process| process.jobs.pop()) else { return };
        let id = WorkerId(worker as u32);
        // What it had emitted came before its refusal, in a worker that refuses what it has begun.
        self.workers[worker].as_mut().expect("present").on_its_way.retain(|event| event.id != job.submit.id);
        let full = Rejection::Overloaded { waiting: 1, limit: 1 };
        let ended = self.ledger.reject((id, job.submit.id, job.submit.attempt), full);
        self.deliver(ended);
        self.dispatch();
    }

    fn cancel(&mut self, pick: usize) {
        let index = pick % self.clients.len().max(1);
        let id = RequestId(index as u64);
        if let Some((_, placement)) = self.ledger.remove(id) {
            self.clients[index].cancelled = true;
            if let Some(placement) = placement {
                self.stop_job(id, placement);
            }
            self.dispatch();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let ended = self.ledger.expire(self.now);
        self.deliver(ended);
        self.dispatch();
    }

    fn stop_job(&mut self, id: RequestId, placement: Placement) {
        let process = self.workers[placement.worker.0 as usize].as_mut().expect("the ledger knows");
        let before = process.jobs.len();
        process.jobs.retain(|job| (job.submit.id, job.submit.attempt) != (id, placement.attempt));
        // A job that is complete may have left the worker before its cancel came.
        assert!(before - process.jobs.len() <= 1);
        self.ghosts.push((placement.worker, id, placement.attempt));
    }

    fn deliver(&mut self, ended: impl IntoIterator<Item = Ended<Rc<RefCell<Received>>>>) {
        for ended in ended {
            if let Some(placement) = ended.placement {
                self.stop_job(ended.id, placement);
            }
            ended.consumer.borrow_mut().outcomes.push(ended.outcome);
        }
    }

    fn check(&self) {
        let mut held = 0;
        let places = Places::of(&LIMITS);
        let mut alone = 0;
        for (index, process) in self.workers.iter().enumerate() {
            let load = self.ledger.load(WorkerId(index as u32));
            let jobs = process.as_ref().map_or(0, |process| process.jobs.len());
            assert_eq!(load.requests, jobs, "worker {index}");
            assert!(load.requests <= places.requests && load.suspects <= places.suspects);
            assert!(load.requests > 0 || load.tokens == 0, "load left behind");
            if let Some(id) = load.alone {
                alone += 1;
                let only = &process.as_ref().expect("has a process").jobs[..];
                assert!(matches!(only, [job] if job.submit.id == id), "request {id} has company");
            }
            held += jobs;
        }
        assert!(alone <= 1, "isolated requests run one at a time");
        let waiting = self.ledger.waiting();
        assert_eq!(self.ledger.len(), held + waiting.requests);
        assert!(waiting.requests > 0 || waiting.tokens == 0);
        for (index, client) in self.clients.iter().enumerate() {
            let received = client.received.borrow();
            let tokens = (0..received.tokens.len()).map(|at| token_at(RequestId(index as u64), at));
            assert!(received.tokens.iter().copied().eq(tokens), "each index once and in order");
            assert!(received.outcomes.len() + usize::from(client.cancelled) <= 1);
        }
    }

    /// Workers come back, and what is left runs to its end.
    fn run_out(&mut self) {
        for round in 0..100_000 {
            if self.ledger.len() == 0 {
                return;
            }
            for worker in 0..self.workers.len() {
                self.come_back(worker);
                self.step(worker, LastWords::Heard);
            }
            let is_stuck = self.workers.iter().flatten().all(|process| process.jobs.is_empty());
            // Nothing runs: only time can help. It also is how long some workers take to load.
            self.pass(if is_stuck { Duration::from_secs(30) } else { Duration::from_millis(10) });
            if round % 100 == 0 {
                self.check();
            }
        }
        panic!("{} requests starve: {:#?}", self.ledger.len(), self.ledger);
    }

    /// How everything has ended.
    fn judge(&self) {
        for (index, client) in self.clients.iter().enumerate() {
            let received = client.received.borrow();
            assert_eq!(received.outcomes.len() + usize::from(client.cancelled), 1, "request {index}");
            let Some(outcome) = received.outcomes.first() else { continue };
            let all = received.tokens.len() == client.max_tokens as usize;
            match (client.nature, outcome) {
                (Nature::EatsMemory, Err(RequestError::Deadline { .. })) => {}
                (Nature::CrashesAt(_) | Nature::CrashesAfter(_), Err(RequestError::Poison { .. })) => {}
                (Nature::EatsMemory, Ok(_)) => panic!("request {index} cannot end"),
                (_, Ok(FinishReason::Length)) if all => {}
                (nature, outcome) => panic!("request {index}, {nature:?}, ended with {outcome:?}"),
            }
            let limit = if client.nature == Nature::EatsMemory { u32::MAX } else { 3 };
            assert!(client.crashes_caused <= limit, "request {index}: {client:?}");
        }
    }
}

/// Whether what a worker sent last reaches the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastWords {
    Heard,
    Lost,
}

#[derive(Debug, Clone)]
enum Op {
    Admit(Nature, u32),
    Step(usize, LastWords),
    Kill(usize, LastWords),
    Order(usize),
    ComeBack(usize),
    Haunt(usize),
    Reject(usize),
    Cancel(usize),
    Pass(u64),
}

fn op(workers: usize) -> impl Strategy<Value = Op> {
    let worker = 0..workers;
    let last_words = prop_oneof![Just(LastWords::Heard), Just(LastWords::Lost)];
    let nature = prop_oneof![
        24 => Just(Nature::Harmless),
        2 => (0usize..40).prop_map(Nature::CrashesAt),
        1 => (0usize..30).prop_map(Nature::CrashesAfter),
        1 => Just(Nature::EatsMemory),
    ];
    prop_oneof![
        6 => (nature, 1u32..60).prop_map(|(nature, max_tokens)| Op::Admit(nature, max_tokens)),
        24 => (worker.clone(), last_words.clone()).prop_map(|(worker, words)| Op::Step(worker, words)),
        1 => (worker.clone(), last_words).prop_map(|(worker, words)| Op::Kill(worker, words)),
        1 => worker.clone().prop_map(Op::Order),
        6 => worker.clone().prop_map(Op::ComeBack),
        1 => any::<usize>().prop_map(Op::Haunt),
        1 => worker.prop_map(Op::Reject),
        1 => any::<usize>().prop_map(Op::Cancel),
        2 => (0u64..1000).prop_map(Op::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nothing_is_lost_and_only_what_crashes_workers_fails(
        (workers, ops) in (1usize..5).prop_flat_map(|workers| {
            (Just(workers), prop::collection::vec(op(workers), 0..300))
        }),
    ) {
        let mut world = World::new(workers);
        for op in ops {
            match op {
                Op::Admit(nature, max_tokens) => {
                    world.admit(nature, max_tokens);
                    world.dispatch();
                }
                Op::Step(worker, last_words) => world.step(worker, last_words),
                Op::Kill(worker, last_words) => world.die(worker, Death::Killed, last_words),
                Op::Order(worker) => world.die(worker, Death::Ordered, LastWords::Heard),
                Op::ComeBack(worker) => world.come_back(worker),
                Op::Haunt(pick) => world.haunt(pick),
                Op::Reject(worker) => world.reject(worker),
                Op::Cancel(pick) => world.cancel(pick),
                Op::Pass(ms) => world.pass(Duration::from_millis(ms)),
            }
            world.check();
        }
        world.run_out();
        world.check();
        world.judge();
    }
}

/// How many steps of a worker a poison among innocents costs, in all.
fn steps_with_poison(workers: usize, nature: Nature) -> usize {
    let mut world = World::new(workers);
    for number in 0..51 {
        world.admit(if number == 7 { nature } else { Nature::Harmless }, 50);
    }
    world.dispatch();
    let mut steps = 0;
    while world.ledger.len() > 0 {
        for worker in 0..workers {
            world.come_back(worker);
            world.step(worker, LastWords::Heard);
            steps += 1;
        }
        world.check();
        world.pass(Duration::from_millis(10));
        assert!(steps < STEPS_MAX, "starves");
    }
    world.judge();
    steps
}

#[test]
fn a_poison_among_fifty_innocents_costs_little_time() {
    for workers in [1, 4] {
        let undisturbed = steps_with_poison(workers, Nature::Harmless);
        for nature in [Nature::CrashesAt(0), Nature::CrashesAt(30), Nature::CrashesAfter(10)] {
            let steps = steps_with_poison(workers, nature);
            // Two innocents at most run alone, for 44 tokens at most, and a round more for what came to wait.
            let limit = undisturbed + workers * (2 * 44 + 50);
            assert!(steps <= limit, "{steps} steps instead of {undisturbed}, limit {limit}, {nature:?}");
        }
    }
}

/// Random numbers of a fixed sequence (SplitMix64, Steele et al. 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Four workers, 16 requests at once out of 400, and a worker that crashes by chance about every `between` rounds and
/// is away for 20. Returns how many requests were condemned.
fn condemned_by_chance(seed: u64, between: usize) -> usize {
    let mut dice = Dice(seed);
    let mut world = World::new(4);
    let mut away = [0usize; 4];
    let mut rounds = 0;
    while world.ledger.len() > 0 || world.clients.len() < 400 {
        while world.ledger.len() < 16 && world.clients.len() < 400 {
            world.admit(Nature::Harmless, 20 + dice.below(80) as u32);
        }
        for (worker, away) in away.iter_mut().enumerate() {
            *away = away.saturating_sub(1);
            if *away == 0 {
                world.come_back(worker);
                world.step(worker, LastWords::Heard);
            }
        }
        if dice.below(between) == 0 {
            let worker = dice.below(4);
            if away[worker] == 0 {
                world.die(worker, CRASH, LastWords::Lost);
                away[worker] = 20;
            }
        }
        world.pass(Duration::from_millis(10));
        rounds += 1;
        assert!(rounds < STEPS_MAX, "starves");
    }
    world.check();
    let poison =
        |client: &&Client| matches!(client.received.borrow().outcomes[0], Err(RequestError::Poison { .. }));
    world.clients.iter().filter(poison).count()
}

#[test]
fn crashes_by_chance_condemn_nobody() {
    // A round is a step, say 10 ms: a crash about every second, of workers that take a fifth to come back.
    let condemned: usize = (0..20).map(|seed| condemned_by_chance(seed, 100)).sum();
    assert_eq!(condemned, 0, "of 8000 requests");
}
