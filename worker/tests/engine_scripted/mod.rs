//! A model whose logits are a hash of every token before, read through the block table as attention would: if a
//! block is shared, evicted, copied or overwritten wrongly, the tokens differ or a position check fails.
//! It has a paged cache but no weights, so thousands of requests run in a second.

#![allow(dead_code, reason = "each test binary uses its part of this module")]

use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::message::{FinishReason, RequestLimits, Submit, WorkerLimits};
use shared::sampling::SamplingParams;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use worker::batch::{Batch, Forward};
use worker::sampler::{Choice, Sampled, Sampler, TokenCounts};
use worker::scheduler::{PrefixCache, SchedulerConfig};
use worker::speculation::Speculation;

pub(crate) const VOCAB_SIZE: usize = 32;

/// The forward pass failed, as asked for.
#[derive(Debug, thiserror::Error)]
#[error("device lost at step {step}")]
pub(crate) struct DeviceLost {
    step: usize,
}

/// How far back a scripted model looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// At every token: its text never repeats itself.
    Whole,
    /// At this many tokens: its text soon runs in circles, when the most likely token is taken.
    Last(usize),
}

impl Memory {
    /// The first position of `len` that counts.
    fn start(self, len: usize) -> usize {
        match self {
            Self::Whole => 0,
            Self::Last(tokens) => len.saturating_sub(tokens),
        }
    }
}

/// What the scripted model does wrong, to test who suffers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// The forward pass of this step fails.
    pub fail_at_step: Option<usize>,
    /// The forward pass of this step panics.
    pub panic_at_step: Option<usize>,
    /// The forward pass of this step never returns.
    pub hang_at_step: Option<usize>,
    /// A sequence that contains this token gets NaN.
    pub poison: Option<TokenId>,
}

pub(crate) struct ScriptedModel {
    /// Token and position of each cache slot.
    cache: Vec<Option<(TokenId, u32)>>,
    block_tokens: usize,
    logits: Vec<f32>,
    steps: Arc<AtomicUsize>,
    faults: Faults,
    memory: Memory,
}

impl ScriptedModel {
    pub(crate) fn new(limits: &WorkerLimits, faults: Faults) -> Self {
        let slots = (limits.kv_blocks * limits.kv_block_tokens) as usize;
        let block_tokens = limits.kv_block_tokens as usize;
        Self {
            cache: vec![None; slots],
            block_tokens,
            logits: Vec::new(),
            steps: Arc::default(),
            faults,
            memory: Memory::Whole,
        }
    }

    pub(crate) fn with_memory(self, memory: Memory) -> Self {
        Self { memory, ..self }
    }

    /// Counts the steps, for whoever wants to watch the engine from outside.
    pub(crate) fn steps(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.steps)
    }

    fn slot(&self, block: u32, offset: usize) -> usize {
        block as usize * self.block_tokens + offset
    }

    fn row(&mut self, table: &[u32], position: u32) {
        let mut state = 1;
        let mut is_poisoned = false;
        for at in 0..=position {
            let slot = self.slot(table[at as usize / self.block_tokens], at as usize % self.block_tokens);
            let (token, stored_at) = self.cache[slot].expect("a position is read before it is written");
            assert_eq!(stored_at, at, "a slot holds another position");
            if at as usize >= self.memory.start(position as usize + 1) {
                state = mix(state ^ u64::from(token) << 1);
            }
            is_poisoned |= Some(token) == self.faults.poison;
        }
        let logits = logits_of(state);
        self.logits.extend(logits.map(|logit| if is_poisoned { f32::NAN } else { logit }));
    }
}

impl Forward for ScriptedModel {
    type Error = DeviceLost;

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], DeviceLost> {
        let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        if self.faults.fail_at_step == Some(step) {
            return Err(DeviceLost { step });
        }
        while self.faults.hang_at_step == Some(step) {
            std::thread::park();
        }
        assert_ne!(self.faults.panic_at_step, Some(step), "scripted panic");
        for ((&token, &position), slot) in batch.tokens.iter().zip(&batch.positions).zip(&batch.slots) {
            let slot = self.slot(slot.block, slot.offset as usize);
            self.cache[slot] = Some((token, position));
        }
        self.logits.clear();
        for &row in &batch.logit_rows {
            let span = batch.spans.iter().find(|span| span.rows.contains(&row)).expect("row without a span");
            self.row(&batch.block_tables[span.blocks.clone()], batch.positions[row]);
        }
        Ok(&self.logits)
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), DeviceLost> {
        let (from, to) = (self.slot(from, 0), self.slot(to, 0));
        self.cache.copy_within(from..from + self.block_tokens, to);
        Ok(())
    }
}

/// The logits after `history`, computed without a cache: the truth.
pub(crate) fn logits_after(history: &[TokenId], memory: Memory) -> Vec<f32> {
    logits_of(
        history[memory.start(history.len())..]
            .iter()
            .fold(1, |state, &token| mix(state ^ u64::from(token) << 1)),
    )
    .collect()
}

fn logits_of(state: u64) -> impl Iterator<Item = f32> {
    (0..VOCAB_SIZE as u64).map(move |token| (mix(state.wrapping_add(token)) >> 48) as f32 / 8192.0)
}

/// SplitMix64's finalizer (Steele, Lea, Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

pub(crate) fn config(context_tokens: u32, kv_blocks: u32, kv_block_tokens: u32) -> SchedulerConfig {
    SchedulerConfig {
        limits: WorkerLimits { context_tokens, sequences: 8, waiting: 64, kv_blocks, kv_block_tokens },
        step_tokens: 16,
        vocab_size: VOCAB_SIZE as u32,
        prefix_cache: PrefixCache::On,
        speculation: Speculation::Off,
    }
}

pub(crate) fn submit(id: u64, prompt: &[TokenId], max_tokens: u32) -> Submit {
    Submit {
        id: RequestId(id),
        attempt: Attempt(0),
        prompt: prompt.to_vec(),
        emitted: Vec::new(),
        sampling: SamplingParams { seed: id, ..SamplingParams::default() },
        limits: RequestLimits { max_tokens, min_tokens: 0, stop_tokens: Vec::new(), priority: 0 },
    }
}

/// The tokens of a request served alone by the plainest means: no cache, no scheduler.
pub(crate) fn alone(submit: &Submit, context_tokens: usize) -> (Vec<TokenId>, FinishReason) {
    alone_with(Memory::Whole, submit, context_tokens)
}

/// The same by a model with some memory.
pub(crate) fn alone_with(
    memory: Memory,
    submit: &Submit,
    context_tokens: usize,
) -> (Vec<TokenId>, FinishReason) {
    let (sampled, reason) = sampled_alone(memory, submit, context_tokens);
    (sampled.into_iter().map(|sampled| sampled.token).collect(), reason)
}

/// The same with log probabilities.
pub(crate) fn sampled_alone(
    memory: Memory,
    submit: &Submit,
    context_tokens: usize,
) -> (Vec<Sampled>, FinishReason) {
    let mut tokens = submit.prompt.clone();
    tokens.extend(&submit.emitted);
    let (mut answer, mut sampler) = (Vec::new(), Sampler::default());
    loop {
        let emitted = tokens.len() - submit.prompt.len();
        if emitted >= submit.limits.max_tokens as usize || tokens.len() >= context_tokens {
            return (answer, FinishReason::Length);
        }
        let may_stop = emitted >= submit.limits.min_tokens as usize;
        let choice = Choice {
            params: &submit.sampling,
            counts: &TokenCounts::new(&submit.prompt, &tokens[submit.prompt.len()..]),
            banned: if may_stop { &[] } else { &submit.limits.stop_tokens },
            index: emitted as u64,
        };
        let sampled = sampler.sample(&logits_after(&tokens, memory), &choice).unwrap();
        let token = sampled.token;
        tokens.push(token);
        answer.push(sampled);
        if may_stop && submit.limits.stop_tokens.contains(&token) {
            return (answer, FinishReason::Stop);
        }
    }
}
