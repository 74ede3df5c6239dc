//! Who gets in: validation of a submit, and the step from waiting to running with whatever the cache holds.

use super::{BlockCopy, Plan, PrefixCache, Scheduler, SchedulerConfig};
use shared::ids::TokenId;
use shared::ipc::message::{Rejection, Submit};

/// Most stop tokens of a request; every one is looked at for every token emitted.
pub const STOP_TOKENS_MAX: usize = 256;

/// Checks everything about a request that does not depend on the others.
pub(super) fn validate(submit: &Submit, config: &SchedulerConfig) -> Result<(), Rejection> {
    let invalid = |message: String| Err(Rejection::Invalid { message });
    if submit.prompt.is_empty() {
        return invalid("prompt has no tokens, at least 1 is needed".to_owned());
    }
    if let Err(error) = submit.sampling.validate() {
        return invalid(error.to_string());
    }
    if submit.limits.stop_tokens.len() > STOP_TOKENS_MAX {
        let count = submit.limits.stop_tokens.len();
        return invalid(format!("request has {count} stop tokens, limit {STOP_TOKENS_MAX}"));
    }
    let biased: Vec<TokenId> = submit.sampling.logit_bias.iter().map(|&(token, _)| token).collect();
    // A stop token beyond the vocabulary is never drawn: some files name an end token their table lacks.
    let lists = [("prompt", &submit.prompt), ("emitted", &submit.emitted), ("logit_bias", &biased)];
    for (field, tokens) in lists {
        if let Some(token) = tokens.iter().find(|&&token| token >= config.vocab_size) {
            return invalid(format!("{field} has token {token}, the vocabulary has {}", config.vocab_size));
        }
    }
    // A prompt that fills the context leaves no place to answer. What was emitted before has fitted.
    let context_tokens = config.limits.context_tokens;
    if submit.prompt.len() >= context_tokens as usize {
        let prompt_tokens = u32::try_from(submit.prompt.len()).unwrap_or(u32::MAX);
        return Err(Rejection::TooLong { prompt_tokens, context_tokens });
    }
    Ok(())
}

impl Scheduler {
    /// Lets waiting sequences in, first in rank first, while there are places and blocks for all their tokens.
    pub(super) fn admit(&mut self, plan: &mut Plan) {
        while self.running.len() < self.config.limits.sequences as usize && self.admit_next(plan) {}
    }

    fn admit_next(&mut self, plan: &mut Plan) -> bool {
        let Some((&rank, sequence)) = self.waiting.first_key_value() else { return false };
        // Blocks the running ones are going to need for the tokens they have, and one each to go on.
        let promised =
            |s: &crate::sequence::Sequence| self.blocks_for(s.tokens().len()).saturating_sub(s.table.len());
        let reserve: usize = self.running.values().map(|s| promised(s) + 1).sum();
        if !self.running.is_empty() && self.blocks.unreferenced() <= reserve {
            return false;
        }
        let hits = match self.config.prefix_cache {
            PrefixCache::On => self.blocks.find_prefix(sequence.tokens()),
            PrefixCache::Off => Vec::new(),
        };
        let size = self.config.limits.kv_block_tokens as usize;
        let is_all_cached = hits.len() * size == sequence.tokens().len();
        let needed = self.blocks_for(sequence.tokens().len()) - hits.len() + usize::from(is_all_cached);
        let taken = hits.iter().filter(|&&block| self.blocks.is_unreferenced(block)).count();
        // Alone, a sequence always fits: the context is no longer than the pool.
        if !self.running.is_empty() && self.blocks.unreferenced() < taken + needed + reserve {
            return false;
        }
        let Some(mut sequence) = self.waiting.remove(&rank) else { return false };
        hits.iter().for_each(|&block| self.blocks.retain(block));
        sequence.published = hits.len();
        sequence.computed = hits.len() * size;
        sequence.table = hits;
        if is_all_cached {
            self.reopen_last_block(&mut sequence, plan);
        }
        if !sequence.is_readmission {
            self.prefix_queries += sequence.tokens().len() as u64;
            self.prefix_hits += sequence.computed as u64;
            sequence.cached_tokens = sequence.computed as u32;
        }
        self.running.insert(rank, sequence);
        true
    }

    /// With every token cached, the last one is still computed for its logits. That writes into the last block,
    /// which others may read: it is copied first, or given up if there is no block for the copy.
    fn reopen_last_block(&mut self, sequence: &mut crate::sequence::Sequence, plan: &mut Plan) {
        let Some(shared) = sequence.table.pop() else { return };
        sequence.published -= 1;
        match self.blocks.allocate() {
            Some(own) => {
                plan.copies.push(BlockCopy { from: shared, to: own });
                sequence.table.push(own);
                sequence.computed -= 1;
            }
            None => sequence.computed -= self.config.limits.kv_block_tokens as usize,
        }
        // The copy runs before the step writes anything, so nobody else's use of the block can come between.
        self.blocks.release(&[shared]);
    }

    /// Moves a prefilling sequence forward over blocks that others have published since it was admitted.
    pub(super) fn adopt_published(&mut self, rank: super::Rank) {
        let size = self.config.limits.kv_block_tokens as usize;
        let Some(sequence) = self.running.get_mut(&rank) else { return };
        if self.config.prefix_cache == PrefixCache::Off || sequence.table.len() != sequence.published {
            return;
        }
        // At least one token is left to compute.
        while sequence.computed == sequence.published * size && sequence.pending() > size {
            let next = &sequence.tokens()[sequence.computed..sequence.computed + size];
            let Some(block) = self.blocks.find(sequence.table.last().copied(), next) else { return };
            self.blocks.retain(block);
            sequence.table.push(block);
            sequence.published += 1;
            sequence.computed += size;
            if !sequence.is_readmission {
                self.prefix_hits += size as u64;
                sequence.cached_tokens += size as u32;
            }
        }
    }

    /// Blocks that hold `tokens` positions.
    pub(super) fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.config.limits.kv_block_tokens as usize)
    }
}
