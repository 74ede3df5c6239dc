//! What the engine holds itself; what it says is tested over sockets in `tests/engine_ipc.rs`.

use super::*;
use crate::scheduler::PrefixCache;
use crate::speculation::Speculation;
use shared::ipc::message::{RequestLimits, WorkerLimits};
use shared::sampling::SamplingParams;

/// A model that no test here lets compute.
struct Unused;

impl Forward for Unused {
    type Error = std::convert::Infallible;

    fn forward(&mut self, _batch: &Batch) -> Result<&[f32], Self::Error> {
        Ok(&[])
    }

    fn vocab_size(&self) -> usize {
        8
    }

    fn copy_block(&mut self, _from: u32, _to: u32) -> Result<(), Self::Error> {
        Ok(())
    }
}

fn attempt(attempt: u32, max_tokens: u32) -> Event {
    Event::Submit(Box::new(Submit {
        id: RequestId(1),
        attempt: Attempt(attempt),
        prompt: vec![1, 2, 3],
        emitted: Vec::new(),
        sampling: SamplingParams::greedy(),
        limits: RequestLimits { max_tokens, min_tokens: 0, stop_tokens: Vec::new(), priority: 0 },
    }))
}

#[test]
fn nothing_stays_of_a_replaced_attempt() {
    let limits =
        WorkerLimits { context_tokens: 64, sequences: 2, waiting: 2, kv_blocks: 8, kv_block_tokens: 16 };
    let (prefix_cache, speculation) = (PrefixCache::On, Speculation::Off);
    let config = SchedulerConfig { limits, step_tokens: 8, vocab_size: 8, prefix_cache, speculation };
    let mut engine = Engine::new(Unused, config, || 0);
    for number in 0..5 {
        engine.handle(attempt(number, 4));
        // The same attempt again is refused and replaces nothing.
        engine.handle(attempt(number, 4));
        assert_eq!(engine.timelines.len(), 1);
    }
    // An attempt with nothing left to emit ends at once, and the one before it with it.
    engine.handle(attempt(5, 0));
    assert!(engine.timelines.is_empty() && engine.scheduler.is_idle());
}
