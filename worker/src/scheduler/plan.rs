//! One step's plan: a token of every decoding sequence, then chunks of prompts with what is left of the budget, then
//! guesses of tokens to come while the step is small.

use super::{PrefixCache, Rank, Scheduler};
use crate::kv_blocks::BlockId;
use crate::speculation::{DRAFTED_STEP_ROWS_MAX, Speculation};
use shared::ids::TokenId;
use std::collections::BTreeSet;

/// Prompt tokens a step computes at least, whatever the budget: one tile of the kernels costs little more than a row.
const PREFILL_TOKENS_MIN: usize = 8;

/// Consecutive tokens of one sequence to compute, and guesses after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The sequence.
    pub rank: Rank,
    /// Position of the first token.
    pub start: usize,
    /// Tokens; at least one.
    pub len: usize,
    /// The chunk ends with the sequence's last token, so a new one is to be drawn from its logits.
    pub yields_token: bool,
    /// Guesses of the tokens to come, computed after the others; empty unless the chunk yields a token. Each is
    /// verified by the token drawn from the row before it.
    pub drafts: Vec<TokenId>,
}

impl Chunk {
    /// Rows it takes in the step.
    pub fn rows(&self) -> usize {
        self.len + self.drafts.len()
    }

    /// Of these, the last ones that tokens may be drawn from.
    pub fn logit_rows(&self) -> usize {
        if self.yields_token { 1 + self.drafts.len() } else { 0 }
    }
}

/// A block to copy before anything is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Source.
    pub from: BlockId,
    /// Target.
    pub to: BlockId,
}

/// What a step does: the copies in order, then all chunks at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// At most one per sequence.
    pub chunks: Vec<Chunk>,
    /// Usually none.
    pub copies: Vec<BlockCopy>,
}

impl Plan {
    /// Token rows in all, those of drafts included.
    pub fn rows(&self) -> usize {
        self.chunks.iter().map(Chunk::rows).sum()
    }
}

/// Tokens a prefilling sequence may compute in this step.
struct Share {
    rank: Rank,
    tokens: usize,
}

impl Scheduler {
    /// Plans the next step, admitting and preempting as needed. Empty only if nothing waits or runs.
    ///
    /// `step_tokens` tightens the configured size of a step. Prompts get [`PREFILL_TOKENS_MIN`] tokens even where
    /// decoding alone fills it, as far as the configuration allows.
    pub fn plan(&mut self, step_tokens: u32) -> Plan {
        let mut plan = Plan::default();
        self.plan_decodes(&mut plan);
        self.admit(&mut plan);
        self.plan_prefills(&mut plan, step_tokens as usize);
        self.plan_drafts(&mut plan);
        plan
    }

    /// One token of each decoding sequence. For lack of a block the last in rank goes back to waiting.
    fn plan_decodes(&mut self, plan: &mut Plan) {
        let decoding = self.running.iter().filter(|(_, sequence)| sequence.pending() == 1);
        let ranks: Vec<Rank> = decoding.map(|(&rank, _)| rank).collect();
        for rank in ranks {
            while self.running.contains_key(&rank) {
                if self.plan_chunk(rank, 1, plan) {
                    break;
                }
                // Sequences are planned in rank order, so the last one has no chunk yet. It may be this one.
                let Some(last) = self.running.keys().next_back().copied() else { break };
                self.preempt(last);
            }
        }
    }

    fn plan_prefills(&mut self, plan: &mut Plan, step_tokens: usize) {
        let planned: BTreeSet<Rank> = plan.chunks.iter().map(|chunk| chunk.rank).collect();
        let mut ranks: Vec<Rank> =
            self.running.keys().copied().filter(|rank| !planned.contains(rank)).collect();
        ranks.iter().for_each(|&rank| self.adopt_published(rank));
        let waits: Vec<bool> =
            (0..ranks.len()).map(|i| self.follows_another(ranks[i], &ranks[..i])).collect();
        let mut waits = waits.into_iter();
        ranks.retain(|_| !waits.next().unwrap_or(false));
        let allowed = (self.config.step_tokens as usize).saturating_sub(plan.rows());
        let budget = step_tokens.saturating_sub(plan.rows()).max(PREFILL_TOKENS_MIN).min(allowed);
        for (index, share) in self.shares(&ranks, budget).into_iter().enumerate() {
            while self.running.contains_key(&share.rank) && share.tokens > 0 {
                // The first in rank may take blocks from prefilling sequences behind it, and from nobody that
                // has a chunk in this plan already.
                if self.plan_chunk(share.rank, share.tokens, plan) || index > 0 {
                    break;
                }
                let behind = self.running.keys().rev().copied();
                let victim =
                    behind.take_while(|&rank| rank > share.rank).find(|rank| !planned.contains(rank));
                match victim {
                    Some(victim) => self.preempt(victim),
                    None => break,
                }
            }
        }
    }

    /// Divides the budget: at least half for the first in rank, so that no prompt starves, the rest for the
    /// prompts with least to do, so that a short one does not wait for a long one's end.
    fn shares(&self, ranks: &[Rank], budget: usize) -> Vec<Share> {
        let pending = |rank: Rank| self.running.get(&rank).map_or(0, |sequence| sequence.pending());
        let Some((&first, others)) = ranks.split_first() else { return Vec::new() };
        let mut head = Share { rank: first, tokens: pending(first).min(budget.div_ceil(2)) };
        let mut left = budget - head.tokens;
        let mut others = others.to_vec();
        others.sort_by_key(|&rank| (rank.priority, pending(rank), rank.ticket));
        let mut shares = Vec::with_capacity(ranks.len());
        for rank in others {
            let tokens = pending(rank).min(left);
            left -= tokens;
            shares.push(Share { rank, tokens });
        }
        head.tokens += left.min(pending(first) - head.tokens);
        shares.insert(0, head);
        shares
    }

    /// Whether the next block of `rank` is being computed right now by one of `earlier`: then it waits for that
    /// block instead of computing it as well. This is what makes `n` choices of one prompt cost one prefill.
    fn follows_another(&self, rank: Rank, earlier: &[Rank]) -> bool {
        let size = self.config.limits.kv_block_tokens as usize;
        let Some(follower) = self.running.get(&rank) else { return false };
        let index = follower.published;
        if self.config.prefix_cache == PrefixCache::Off
            || follower.computed != index * size
            || follower.pending() <= size
        {
            return false;
        }
        let block = index * size..(index + 1) * size;
        let leads = |leader: &crate::sequence::Sequence| {
            leader.published == index
                && leader.table[..index] == follower.table[..index]
                && leader.tokens().get(block.clone()) == Some(&follower.tokens()[block.clone()])
        };
        earlier.iter().filter_map(|rank| self.running.get(rank)).any(leads)
    }

    /// Plans up to `tokens` of a sequence, as far as there are blocks; false if there are none.
    fn plan_chunk(&mut self, rank: Rank, tokens: usize, plan: &mut Plan) -> bool {
        let size = self.config.limits.kv_block_tokens as usize;
        let Some(sequence) = self.running.get_mut(&rank) else { return false };
        let end = sequence.computed + tokens;
        while sequence.table.len() * size < end {
            match self.blocks.allocate() {
                Some(block) => sequence.table.push(block),
                None => break,
            }
        }
        let len = end.min(sequence.table.len() * size) - sequence.computed;
        if len > 0 {
            let yields_token = len == sequence.pending();
            let start = sequence.computed;
            plan.chunks.push(Chunk { rank, start, len, yields_token, drafts: Vec::new() });
        }
        len > 0
    }

    /// Gives the sequences that are about to draw a token even shares of the rows that are left.
    fn plan_drafts(&mut self, plan: &mut Plan) {
        if self.config.speculation == Speculation::Off {
            return;
        }
        let rows_max = DRAFTED_STEP_ROWS_MAX.min(self.config.step_tokens as usize);
        let mut left = rows_max.saturating_sub(plan.rows());
        let mut sharers = plan.chunks.iter().filter(|chunk| chunk.yields_token).count();
        for chunk in plan.chunks.iter_mut().filter(|chunk| chunk.yields_token) {
            chunk.drafts = self.draft(chunk.rank, left.div_ceil(sharers));
            left -= chunk.drafts.len();
            sharers -= 1;
        }
    }

    /// Guesses at most `most` tokens, fewer if there are no blocks for them: nobody is preempted for a guess.
    fn draft(&mut self, rank: Rank, most: usize) -> Vec<TokenId> {
        let limits = &self.config.limits;
        let size = limits.kv_block_tokens as usize;
        let Some(sequence) = self.running.get_mut(&rank) else { return Vec::new() };
        let mut drafts = sequence.propose(most, limits.context_tokens as usize);
        let known = sequence.tokens().len();
        while sequence.table.len() * size < known + drafts.len() {
            match self.blocks.allocate() {
                Some(block) => sequence.table.push(block),
                None => break,
            }
        }
        drafts.truncate(sequence.table.len() * size - known);
        drafts
    }

    /// Sends a sequence back to waiting. It keeps its tokens and its rank and computes its blocks again later,
    /// unless they are still cached then.
    fn preempt(&mut self, rank: Rank) {
        let Some(mut sequence) = self.running.remove(&rank) else { return };
        self.blocks.release(&std::mem::take(&mut sequence.table));
        sequence.computed = 0;
        sequence.published = 0;
        sequence.is_readmission = true;
        self.waiting.insert(rank, sequence);
        self.preemptions += 1;
    }
}
