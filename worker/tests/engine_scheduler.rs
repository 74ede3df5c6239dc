//! The scheduler with the scripted model, without engine, clock or threads: everything ends, nothing leaks, and
//! every request gets the tokens it would get alone.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "engine_scripted/mod.rs"]
mod scripted;

use proptest::prelude::*;
use scripted::{Faults, Memory, ScriptedModel, VOCAB_SIZE, alone, alone_with, config, submit};
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::message::{EngineStats, FinishReason, Rejection, Submit};
use shared::sampling::SamplingParams;
use std::collections::BTreeMap;
use worker::batch::{Batch, Forward};
use worker::sampler::{Choice, Sampler};
use worker::scheduler::{Admission, Chunk, Plan, PrefixCache, Rank, Scheduler, SchedulerConfig};
use worker::speculation::{DRAFTED_STEP_ROWS_MAX, Speculation};

/// What a request got: its new tokens and, once it has ended, why.
type Answers = BTreeMap<RequestId, (Vec<TokenId>, Option<FinishReason>)>;

/// The engine without its shell.
struct Rig {
    scheduler: Scheduler,
    model: ScriptedModel,
    sampler: Sampler,
    answers: Answers,
    steps: usize,
    budget: StepTokens,
}

/// How many tokens the engine allows a step.
#[derive(Clone, Copy)]
enum StepTokens {
    /// As configured.
    Full,
    /// Another number each time; what comes out must not change.
    Changing,
}

impl Rig {
    fn new(config: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(config);
        Self::with_memory(scheduler, Memory::Whole)
    }

    fn with_memory(scheduler: Scheduler, memory: Memory) -> Self {
        let model = ScriptedModel::new(&scheduler.config().limits, Faults::default()).with_memory(memory);
        Self {
            scheduler,
            model,
            sampler: Sampler::default(),
            answers: Answers::new(),
            steps: 0,
            budget: StepTokens::Full,
        }
    }

    fn submit(&mut self, submit: Submit) -> Result<Admission, Rejection> {
        let id = submit.id;
        let admission = self.scheduler.submit(submit)?;
        let reason = if let Admission::Finished(reason) = admission { Some(reason) } else { None };
        self.answers.insert(id, (Vec::new(), reason));
        Ok(admission)
    }

    fn stats(&self) -> EngineStats {
        let mut stats = EngineStats::default();
        self.scheduler.describe(&mut stats);
        stats
    }

    /// One step, holding the plan to what the scheduler promises.
    fn step(&mut self) -> Plan {
        let decoding: Vec<RequestId> = self.decoding();
        let preempted_before = self.stats().preemptions;
        let config = *self.scheduler.config();
        let plan = self.scheduler.plan(match self.budget {
            StepTokens::Full => config.step_tokens,
            StepTokens::Changing => 1 + (self.steps as u32).wrapping_mul(7) % config.step_tokens,
        });
        self.steps += 1;
        assert!(plan.rows() <= config.step_tokens as usize, "plan of {} rows", plan.rows());
        if plan.chunks.iter().any(|chunk| !chunk.drafts.is_empty()) {
            assert!(plan.rows() <= DRAFTED_STEP_ROWS_MAX, "drafts in a step of {} rows", plan.rows());
            assert_eq!(config.speculation, Speculation::Auto);
            assert!(plan.chunks.iter().all(|chunk| chunk.yields_token || chunk.drafts.is_empty()));
        }
        assert_eq!(plan.chunks.is_empty(), self.scheduler.is_idle(), "a step without progress");
        if self.stats().preemptions == preempted_before {
            let planned: Vec<RequestId> = plan.chunks.iter().map(|c| self.id(c.rank)).collect();
            assert!(decoding.iter().all(|id| planned.contains(id)), "a decoding sequence was left out");
        }
        for copy in &plan.copies {
            self.model.copy_block(copy.from, copy.to).unwrap();
        }
        let mut batch = Batch::default();
        for chunk in &plan.chunks {
            let sequence = self.scheduler.sequence(chunk.rank).unwrap();
            let known = &sequence.tokens()[chunk.start..chunk.start + chunk.len];
            let tokens = [known, &chunk.drafts].concat();
            let rows =
                batch.push(&tokens, chunk.start as u32, sequence.table(), config.limits.kv_block_tokens);
            batch.logit_rows.extend(rows.end - chunk.logit_rows()..rows.end);
        }
        let logits = self.model.forward(&batch).unwrap().to_vec();
        let mut rows = logits.chunks_exact(VOCAB_SIZE);
        for chunk in &plan.chunks {
            let rows: Vec<&[f32]> = rows.by_ref().take(chunk.logit_rows()).collect();
            let accepted = self.verify(chunk, &rows);
            self.scheduler.advance(chunk, accepted);
            if self.answers[&self.id(chunk.rank)].1.is_some() {
                self.scheduler.remove(chunk.rank);
            }
        }
        assert_eq!(rows.next(), None);
        plan
    }

    /// Draws up to the first token that ends the request or is not the draft for its place.
    fn verify(&mut self, chunk: &Chunk, rows: &[&[f32]]) -> usize {
        for (index, row) in rows.iter().enumerate() {
            let (token, end) = self.draw(chunk.rank, row);
            let is_accepted = chunk.drafts.get(index) == Some(&token);
            if end.is_some() || !is_accepted {
                return index + usize::from(is_accepted);
            }
        }
        0
    }

    fn draw(&mut self, rank: Rank, row: &[f32]) -> (TokenId, Option<FinishReason>) {
        let sequence = self.scheduler.sequence(rank).unwrap();
        let choice = Choice {
            params: &sequence.sampling,
            counts: &sequence.counts,
            banned: sequence.banned(),
            index: sequence.emitted_len() as u64,
        };
        let token = self.sampler.sample(row, &choice).unwrap().token;
        let answer = self.answers.get_mut(&sequence.id).unwrap();
        answer.0.push(token);
        answer.1 = self.scheduler.emit(rank, token);
        (token, answer.1)
    }

    fn id(&self, rank: Rank) -> RequestId {
        self.scheduler.sequence(rank).unwrap().id
    }

    fn decoding(&self) -> Vec<RequestId> {
        let begun = self.answers.iter().filter(|(_, (tokens, end))| !tokens.is_empty() && end.is_none());
        let ranks = begun.map(|(id, _)| *id);
        // A preempted sequence has to be prefilled again before it decodes.
        ranks.filter(|id| self.scheduler.pending(*id) == Some(1)).collect()
    }

    fn run_to_end(&mut self) {
        let bound = self.steps + 20_000;
        while !self.scheduler.is_idle() {
            self.step();
            assert!(self.steps < bound, "requests do not end");
        }
        let stats = self.stats();
        assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total, "blocks leak");
    }
}

fn prompt(len: usize) -> Vec<TokenId> {
    (0..len).map(|i| (i * 7 % VOCAB_SIZE) as TokenId).collect()
}

#[test]
fn decoding_goes_on_while_a_long_prompt_is_prefilled() {
    let mut rig = Rig::new(config(512, 64, 16));
    rig.submit(submit(1, &prompt(3), 100)).unwrap();
    rig.step();
    rig.submit(submit(2, &prompt(300), 4)).unwrap();
    for _ in 0..15 {
        let before = rig.answers[&RequestId(1)].0.len();
        let plan = rig.step();
        assert_eq!(rig.answers[&RequestId(1)].0.len(), before + 1);
        assert_eq!(plan.rows(), 16, "the budget is used");
    }
    rig.run_to_end();
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_ones_end() {
    let mut rig = Rig::new(config(512, 64, 16));
    let mut other = prompt(8);
    other[0] = 31;
    rig.submit(submit(1, &prompt(400), 4)).unwrap();
    rig.submit(submit(2, &other, 4)).unwrap();
    rig.step();
    assert_eq!(rig.answers[&RequestId(2)].0.len(), 1);
    rig.run_to_end();
}

#[test]
fn a_long_prompt_does_not_starve_behind_short_ones() {
    let mut rig = Rig::new(config(512, 200, 4));
    rig.submit(submit(0, &prompt(400), 1)).unwrap();
    // Every step brings short prompts that could fill the whole budget; half of it is the long one's.
    for id in 1..=60 {
        let short: Vec<TokenId> = prompt(16).iter().map(|token| (token + id as TokenId) % 32).collect();
        rig.submit(submit(id, &short, 1)).unwrap();
        rig.step();
    }
    assert!(rig.answers[&RequestId(0)].1.is_some(), "the long prompt starves");
    rig.run_to_end();
}

#[test]
fn choices_of_one_prompt_compute_it_once() {
    let check = |prompt_len: usize, expected: usize, hits: u64| {
        let mut rig = Rig::new(config(128, 64, 4));
        for id in 0..4 {
            rig.submit(submit(id, &prompt(prompt_len), 1)).unwrap();
        }
        let mut computed = 0;
        while !rig.scheduler.is_idle() {
            computed += rig.step().rows();
        }
        assert_eq!((computed, rig.stats().prefix_hits), (expected, hits));
    };
    // 40 tokens in full blocks once, the 2 beyond them for each.
    check(42, 40 + 4 * 2, 3 * 40);
    // Each computes the last block for its logits.
    check(40, 36 + 4 * 4, 3 * 36);
}

#[test]
fn a_completely_cached_prompt_computes_only_its_last_token() {
    let mut rig = Rig::new(config(128, 64, 4));
    let first = submit(1, &prompt(16), 3);
    rig.submit(first.clone()).unwrap();
    rig.run_to_end();
    rig.submit(Submit { id: RequestId(2), ..first.clone() }).unwrap();
    let plan = rig.step();
    assert_eq!((plan.rows(), plan.copies.len()), (1, 1));
    rig.run_to_end();
    assert_eq!(rig.answers[&RequestId(1)], rig.answers[&RequestId(2)]);
    // Without a block for the copy, the last block is computed again instead.
    let mut tight = Rig::new(config(16, 4, 4));
    tight.submit(submit(1, &prompt(15), 5)).unwrap();
    tight.run_to_end();
    let mut whole = prompt(15);
    whole.truncate(12);
    tight.submit(submit(2, &whole, 4)).unwrap();
    tight.run_to_end();
    assert_eq!(tight.answers[&RequestId(2)].0, alone(&submit(2, &whole, 4), 16).0);
}

#[test]
fn smaller_priority_runs_first() {
    let mut config = config(64, 64, 4);
    config.limits.sequences = 1;
    let mut rig = Rig::new(config);
    for (id, priority) in [(1, 0), (2, 5), (3, -5)] {
        let mut request = submit(id, &prompt(3), 2);
        request.limits.priority = priority;
        rig.submit(request).unwrap();
    }
    let mut order = Vec::new();
    while !rig.scheduler.is_idle() {
        rig.step();
        order.extend(rig.answers.iter().filter(|(_, a)| a.1.is_some()).map(|(id, _)| id.0));
        order.dedup();
    }
    let first_seen: Vec<u64> = order.iter().copied().fold(Vec::new(), |mut seen, id| {
        if !seen.contains(&id) {
            seen.push(id);
        }
        seen
    });
    assert_eq!(first_seen, [3, 1, 2]);
}

#[test]
fn preempted_requests_go_on_with_the_same_tokens() {
    // Blocks for about one and a half requests.
    let mut rig = Rig::new(config(40, 14, 4));
    let requests: Vec<Submit> = (0..4).map(|id| submit(id, &[id as TokenId + 1; 5], 30)).collect();
    for request in &requests {
        rig.submit(request.clone()).unwrap();
    }
    rig.run_to_end();
    assert!(rig.stats().preemptions > 0);
    for request in &requests {
        let (tokens, reason) = alone(request, 40);
        assert_eq!(rig.answers[&request.id], (tokens, Some(reason)));
    }
}

#[test]
fn bad_requests_are_refused_with_the_reason() {
    let mut config = config(32, 8, 4);
    config.limits.sequences = 1;
    config.limits.waiting = 1;
    let mut rig = Rig::new(config);
    let mut refused = |change: fn(&mut Submit), expected: &str| {
        let mut request = submit(9, &[1, 2], 4);
        change(&mut request);
        assert_eq!(rig.submit(request).unwrap_err().to_string(), expected);
    };
    refused(|s| s.prompt.clear(), "prompt has no tokens, at least 1 is needed");
    refused(|s| s.prompt = vec![1; 32], "prompt has 32 tokens, the worker's context holds 32");
    refused(|s| s.prompt[1] = 32, "prompt has token 32, the vocabulary has 32");
    refused(|s| s.emitted = vec![77], "emitted has token 77, the vocabulary has 32");
    refused(|s| s.limits.stop_tokens = vec![1; 257], "request has 257 stop tokens, limit 256");
    refused(|s| s.sampling.logit_bias = vec![(32, 1.0)], "logit_bias has token 32, the vocabulary has 32");
    refused(|s| s.sampling.temperature = f32::NAN, "temperature is NaN, allowed: 0 to 2");
    // A stop token that no logits row has is harmless.
    for id in [1, 2] {
        let mut request = submit(id, &[1], 4);
        request.limits.stop_tokens = vec![99];
        request.limits.min_tokens = 2;
        rig.submit(request).unwrap();
    }
    let full = rig.submit(submit(3, &[1], 4)).unwrap_err();
    assert_eq!(full, Rejection::Overloaded { waiting: 2, limit: 1 });
    assert!(matches!(rig.submit(submit(1, &[1], 4)), Err(Rejection::Invalid { .. })));
    rig.scheduler.drain();
    assert_eq!(rig.submit(submit(4, &[1], 4)), Err(Rejection::Draining));
    rig.run_to_end();
    rig.scheduler.resume();
    rig.submit(submit(4, &[1], 4)).unwrap();
}

#[test]
fn resumed_requests_that_had_ended_end_at_once() {
    let mut rig = Rig::new(config(8, 8, 4));
    let mut finished = |change: fn(&mut Submit)| {
        let mut request = submit(1, &[1, 2], 4);
        request.limits.stop_tokens = vec![9];
        change(&mut request);
        match rig.submit(request).unwrap() {
            Admission::Finished(reason) => Some(reason),
            Admission::Waiting(_) => rig.scheduler.cancel(RequestId(1), Attempt(0)).and(None),
        }
    };
    assert_eq!(finished(|_| ()), None);
    assert_eq!(finished(|s| s.limits.max_tokens = 0), Some(FinishReason::Length));
    assert_eq!(finished(|s| s.emitted = vec![3, 4, 5, 6]), Some(FinishReason::Length));
    assert_eq!(finished(|s| s.emitted = vec![3, 9]), Some(FinishReason::Stop));
    assert_eq!(
        finished(|s| {
            s.emitted = vec![3, 9];
            s.limits.min_tokens = 2
        }),
        None
    );
    assert_eq!(
        finished(|s| {
            s.emitted = vec![3; 6];
            s.limits.max_tokens = 50
        }),
        Some(FinishReason::Length)
    );
}

/// A request, when it comes, and when it is cancelled, in steps.
#[derive(Debug, Clone)]
struct Visit {
    submit: Submit,
    arrives: usize,
    cancelled: Option<usize>,
}

fn any_visit() -> impl Strategy<Value = Visit> {
    // Few values and a common start: prefixes are shared, partly shared, and diverge.
    let prompt = (0usize..24, prop::collection::vec(0u32..3, 1..12))
        .prop_map(|(common, own)| prompt(common).into_iter().chain(own).collect::<Vec<_>>());
    let penalty = prop_oneof![3 => Just(0f32), 1 => Just(0.7)];
    (
        prompt,
        (0usize..4, 1u32..24, 0u32..6),
        -1i32..2,
        0usize..60,
        prop::option::weighted(0.2, 0usize..80),
        penalty,
    )
        .prop_map(
            |(prompt, (emitted, max_tokens, min_tokens), priority, arrives, cancelled, penalty)| {
                let mut submit = submit(0, &prompt, max_tokens);
                submit.emitted = vec![7; emitted.min(max_tokens as usize - 1)];
                submit.limits.min_tokens = min_tokens;
                submit.limits.stop_tokens = vec![3, 4];
                submit.limits.priority = priority;
                submit.sampling = SamplingParams { presence_penalty: penalty, ..submit.sampling };
                Visit { submit, arrives, cancelled }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_request_gets_the_tokens_it_would_get_alone(
        mut visits in prop::collection::vec(any_visit(), 1..24),
        (kv_blocks, block_tokens) in (10u32..60, 1u32..6),
        (step_tokens, sequences) in (1u32..40, 1u32..9),
        prefix_cache in prop_oneof![3 => Just(PrefixCache::On), 1 => Just(PrefixCache::Off)],
        speculation in prop_oneof![Just(Speculation::Auto), Just(Speculation::Off)],
        memory in prop_oneof![Just(Memory::Whole), (1usize..4).prop_map(Memory::Last)],
    ) {
        let mut config = config(64, kv_blocks, block_tokens);
        config.limits.sequences = sequences;
        config.step_tokens = step_tokens;
        config.prefix_cache = prefix_cache;
        config.speculation = speculation;
        let mut rig = Rig::with_memory(Scheduler::new(config), memory);
        rig.budget = StepTokens::Changing;
        let context_tokens = rig.scheduler.config().limits.context_tokens as usize;
        for (id, visit) in (0..).zip(&mut visits) {
            visit.submit.id = RequestId(id);
            visit.submit.sampling.seed = id;
        }
        for step in 0..80 {
            for visit in &visits {
                if visit.arrives == step {
                    let fits = visit.submit.prompt.len() < context_tokens;
                    prop_assert_eq!(rig.submit(visit.submit.clone()).is_ok(), fits);
                }
                if visit.cancelled == Some(step) {
                    rig.scheduler.cancel(visit.submit.id, Attempt(0));
                }
            }
            rig.step();
        }
        rig.run_to_end();
        for visit in &visits {
            let Some((tokens, reason)) = rig.answers.get(&visit.submit.id) else { continue };
            let (expected, expected_reason) = alone_with(memory, &visit.submit, context_tokens);
            match reason {
                Some(reason) => {
                    prop_assert_eq!(tokens, &expected);
                    prop_assert_eq!(*reason, expected_reason);
                }
                None => {
                    prop_assert!(visit.cancelled.is_some(), "a request did not end");
                    prop_assert!(expected.starts_with(tokens));
                }
            }
        }
    }
}
