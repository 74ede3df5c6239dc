//! Speculative decoding in the real engine, with the scripted model: tokens, log probabilities and ends are those of
//! plain decoding, whatever is guessed; guesses are right where text repeats and rare where it does not.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "engine_scripted/mod.rs"]
mod scripted;

use proptest::prelude::*;
use scripted::{Faults, Memory, ScriptedModel, VOCAB_SIZE, config, sampled_alone, submit};
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::FromWorker;
use shared::ipc::message::{EngineStats, FinishReason, Submit, TokenEvent};
use shared::sampling::SamplingParams;
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use worker::engine::{EVENTS_MAX, Engine, Event, MESSAGES_MAX};
use worker::sampler::Sampled;
use worker::scheduler::{PrefixCache, SchedulerConfig};
use worker::speculation::{DRAFTED_STEP_ROWS_MAX, Speculation};

/// What one request got.
#[derive(Debug, Default)]
struct Answer {
    sampled: Vec<Sampled>,
    end: Option<FinishReason>,
}

/// What serving some requests led to.
struct Served {
    answers: BTreeMap<RequestId, Answer>,
    stats: EngineStats,
    /// Most rows of a step, and most tokens of one sequence in a step.
    widest: (u32, usize),
}

/// A request, and the step frame after which it is cancelled.
#[derive(Debug, Clone)]
struct Visit {
    submit: Submit,
    cancelled_after: Option<usize>,
}

impl From<Submit> for Visit {
    fn from(submit: Submit) -> Self {
        Self { submit, cancelled_after: None }
    }
}

/// Serves `waves` of requests one after the other by one engine.
fn serve(config: SchedulerConfig, memory: Memory, waves: &[Vec<Visit>]) -> Served {
    let limits = config.normalized().limits;
    let model = ScriptedModel::new(&limits, Faults::default()).with_memory(memory);
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let (gateway, mut messages) = mpsc::channel(MESSAGES_MAX);
    let engine = std::thread::spawn(move || Engine::new(model, config, || 0).run(inbox));
    let post = |event| events.blocking_send(event).expect("engine lives");
    post(Event::Connected(gateway));
    let mut served = Served { answers: BTreeMap::new(), stats: EngineStats::default(), widest: (0, 0) };
    for wave in waves {
        for visit in wave {
            served.answers.insert(visit.submit.id, Answer::default());
            post(Event::Submit(Box::new(visit.submit.clone())));
        }
        let mut frames = 0;
        while served.answers.values().any(|answer| answer.end.is_none()) {
            for visit in wave.iter().filter(|visit| visit.cancelled_after == Some(frames)) {
                post(Event::Cancel { id: visit.submit.id, attempt: Attempt(0) });
            }
            frames += 1;
            served.record(messages.blocking_recv().expect("engine lives"), wave);
        }
    }
    post(Event::Ping { nonce: 5 });
    while !matches!(messages.blocking_recv(), Some(FromWorker::Pong { stats, .. }) if served.rest(stats)) {}
    post(Event::Shutdown);
    engine.join().expect("engine does not panic").expect("engine does not fail");
    served
}

impl Served {
    fn rest(&mut self, stats: EngineStats) -> bool {
        assert_eq!((stats.running, stats.waiting), (0, 0));
        assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total, "blocks leak");
        assert!(stats.accepted <= stats.drafted);
        self.stats = stats;
        true
    }

    fn record(&mut self, message: FromWorker, wave: &[Visit]) {
        match message {
            FromWorker::Step { events, stats } => {
                self.widest.0 = self.widest.0.max(stats.batch_tokens);
                for answer in self.answers.keys() {
                    let tokens = events.iter().filter(|event| event.id == *answer).count();
                    self.widest.1 = self.widest.1.max(tokens);
                }
                events.into_iter().for_each(|event| self.record_token(event, wave));
            }
            FromWorker::Finished { id, reason, .. } => {
                let answer = self.answers.get_mut(&id).expect("known request");
                assert_eq!(answer.end.replace(reason), None, "a request ended twice");
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn record_token(&mut self, event: TokenEvent, wave: &[Visit]) {
        let TokenEvent { id, index, token, logprobs, .. } = event;
        let answer = self.answers.get_mut(&id).expect("known request");
        assert_eq!(answer.end, None, "token after the end");
        let visit = wave.iter().find(|visit| visit.submit.id == id).expect("known request");
        assert_eq!(index as usize, visit.submit.emitted.len() + answer.sampled.len(), "a gap");
        answer.sampled.push(Sampled { token, logprobs });
    }

    fn check(&self, memory: Memory, visits: &[Visit], context_tokens: usize) {
        for Visit { submit, cancelled_after } in visits {
            let answer = &self.answers[&submit.id];
            let (expected, expected_end) = sampled_alone(memory, submit, context_tokens);
            if answer.end == Some(FinishReason::Cancelled) {
                assert!(cancelled_after.is_some());
                assert!(expected.starts_with(&answer.sampled));
            } else {
                assert_eq!((&answer.sampled, answer.end), (&expected, Some(expected_end)));
            }
        }
    }
}

fn speculating(config: SchedulerConfig) -> SchedulerConfig {
    SchedulerConfig { speculation: Speculation::Auto, ..config }
}

fn greedy(id: u64, prompt: &[TokenId], max_tokens: u32) -> Submit {
    Submit { sampling: SamplingParams::greedy(), ..submit(id, prompt, max_tokens) }
}

#[test]
fn text_that_repeats_is_guessed() {
    let visits: Vec<Visit> = vec![greedy(1, &[1, 2, 3], 400).into()];
    let served = serve(speculating(config(512, 64, 16)), Memory::Last(1), std::slice::from_ref(&visits));
    served.check(Memory::Last(1), &visits, 512);
    let EngineStats { step, drafted, accepted, .. } = served.stats;
    assert!(accepted * 10 > drafted * 9, "{accepted} of {drafted} drafts were right");
    assert!(step < 400 / 6, "{step} steps for 400 tokens");
    assert_eq!(served.widest, (DRAFTED_STEP_ROWS_MAX as u32, DRAFTED_STEP_ROWS_MAX));
    let plain = serve(config(512, 64, 16), Memory::Last(1), std::slice::from_ref(&visits));
    assert_eq!((plain.stats.step, plain.stats.drafted), (400, 0));
}

#[test]
fn text_that_does_not_repeat_is_not_guessed_at_for_long() {
    // Of 32 tokens, so that pairs come again all the time and what follows them does not.
    let visits: Vec<Visit> = vec![greedy(1, &[1, 2, 3], 1500).into()];
    let served = serve(speculating(config(2048, 256, 16)), Memory::Whole, std::slice::from_ref(&visits));
    served.check(Memory::Whole, &visits, 2048);
    assert!(served.stats.drafted < 100, "{} drafts for 1500 tokens", served.stats.drafted);
}

#[test]
fn sequences_share_the_rows_of_a_step_and_many_draft_nothing() {
    let run = |count: u64| {
        let visits: Vec<Visit> = (0..count).map(|id| greedy(id, &[id as TokenId; 4], 200).into()).collect();
        let config = SchedulerConfig { step_tokens: 64, ..speculating(config(256, 256, 16)) };
        let served = serve(config, Memory::Last(1), std::slice::from_ref(&visits));
        served.check(Memory::Last(1), &visits, 256);
        served.stats
    };
    let three = run(3);
    // Five rows beyond three: each sequence advances by more than two tokens a step.
    assert!(three.step < 100, "{} steps for 200 tokens each", three.step);
    assert_eq!(run(8).drafted, 0);
}

#[test]
fn a_stop_token_among_right_guesses_ends_the_request() {
    let memory = Memory::Last(1);
    let (circle, _) = sampled_alone(memory, &greedy(1, &[1], 60), 128);
    let prompt: Vec<TokenId> = circle.iter().map(|sampled| sampled.token).collect();
    let visits: Vec<Visit> = (0..12)
        .map(|id| {
            let mut submit = greedy(id, &prompt, 40);
            // What comes after so many tokens, if nothing is banned.
            submit.limits.stop_tokens = vec![sampled_alone(memory, &submit, 128).0[id as usize].token];
            submit.limits.min_tokens = if id % 2 == 0 { 0 } else { id as u32 };
            submit.into()
        })
        .collect();
    let mut config = speculating(config(128, 64, 16));
    config.limits.sequences = 1;
    let served = serve(config, memory, std::slice::from_ref(&visits));
    served.check(memory, &visits, 128);
    assert!(served.widest.1 > 2, "guesses were not right");
    assert!(served.answers.values().any(|answer| answer.end == Some(FinishReason::Stop)));
}

#[test]
fn blocks_published_while_guessing_hold_what_was_emitted() {
    let config = speculating(SchedulerConfig { step_tokens: 64, ..config(512, 256, 4) });
    let memory = Memory::Last(2);
    let first: Vec<Visit> = (0..4).map(|id| greedy(id, &[7, id as TokenId, 9], 90).into()).collect();
    // Goes on from each answer, whose blocks are found.
    let second: Vec<Visit> = first
        .iter()
        .map(|visit| {
            let (answer, _) = sampled_alone(memory, &visit.submit, 512);
            let answer = answer.iter().map(|sampled| sampled.token);
            let prompt: Vec<TokenId> = visit.submit.prompt.iter().copied().chain(answer).collect();
            greedy(visit.submit.id.0 + 10, &prompt, 90).into()
        })
        .collect();
    let served = serve(config, memory, &[first.clone(), second.clone()]);
    served.check(memory, &first, 512);
    served.check(memory, &second, 512);
    assert!(served.stats.accepted > 100 && served.stats.prefix_hits >= 4 * 88, "{:?}", served.stats);
}

fn any_visit() -> impl Strategy<Value = Visit> {
    // Prompts that repeat themselves, so that there is something to guess from the start.
    let prompt = (prop::collection::vec(0..VOCAB_SIZE as TokenId, 1..5), 1usize..6)
        .prop_map(|(part, times)| part.repeat(times));
    let sampling = (
        prop_oneof![Just(0f32), Just(0.6), Just(1.0)],
        prop_oneof![3 => Just((0f32, 1f32)), 1 => Just((0.4, 1.0)), 1 => Just((0.0, 1.2))],
        prop::option::of(0u32..4),
    );
    let limits = (0usize..4, 1u32..60, 0u32..20, -1i32..2, prop::bool::weighted(0.3));
    (prompt, sampling, limits, prop::option::weighted(0.2, 0usize..40)).prop_map(
        |(prompt, (temperature, (frequency, repetition), logprobs), limits, cancelled_after)| {
            let (emitted, max_tokens, min_tokens, priority, stops_at_prompt_token) = limits;
            let mut submit = submit(0, &prompt, max_tokens);
            submit.emitted = vec![7; emitted.min(max_tokens as usize - 1)];
            submit.limits.min_tokens = min_tokens;
            // What was emitted before must not have ended the request.
            let is_stop_in_prompt = stops_at_prompt_token && prompt[0] != 7;
            submit.limits.stop_tokens = if is_stop_in_prompt { prompt[..1].to_vec() } else { vec![3, 21] };
            submit.limits.priority = priority;
            submit.sampling.temperature = temperature;
            submit.sampling.frequency_penalty = frequency;
            submit.sampling.repetition_penalty = repetition;
            submit.sampling.logprobs = logprobs;
            Visit { submit, cancelled_after }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn guessing_changes_nothing(
        mut visits in prop::collection::vec(any_visit(), 1..10),
        memory in prop_oneof![1 => Just(Memory::Whole), 3 => (1usize..4).prop_map(Memory::Last)],
        (kv_blocks, block_tokens) in (20u32..60, 1u32..6),
        (step_tokens, sequences) in (1u32..40, 1u32..6),
        prefix_cache in prop_oneof![3 => Just(PrefixCache::On), 1 => Just(PrefixCache::Off)],
    ) {
        let mut config = speculating(config(96, kv_blocks, block_tokens));
        config.limits.sequences = sequences;
        config.step_tokens = step_tokens;
        config.prefix_cache = prefix_cache;
        let config = config.normalized();
        let context_tokens = config.limits.context_tokens as usize;
        visits.retain(|visit| visit.submit.prompt.len() < context_tokens);
        for (id, visit) in (0..).zip(&mut visits) {
            visit.submit.id = RequestId(id);
            visit.submit.sampling.seed = id;
        }
        let served = serve(config, memory, std::slice::from_ref(&visits));
        served.check(memory, &visits, context_tokens);
        prop_assert!(served.widest.0 <= config.step_tokens);
        let plain = SchedulerConfig { speculation: Speculation::Off, ..config };
        let plain = serve(plain, memory, std::slice::from_ref(&visits));
        plain.check(memory, &visits, context_tokens);
        prop_assert_eq!(plain.stats.drafted, 0);
    }
}
