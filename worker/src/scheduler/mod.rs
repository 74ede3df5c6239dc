//! Which tokens the next step computes: continuous batching with chunked prefill over a bounded block pool.
//!
//! The engine calls [`Scheduler::submit`] and [`Scheduler::cancel`] as requests come and go, and once per step
//! [`Scheduler::plan`], then for every chunk [`Scheduler::emit`] with each token drawn and [`Scheduler::advance`].
//! Pure: no clock, no I/O, no randomness.
//!
//! What holds always: every running sequence that decodes is in every plan, unless it is preempted; a plan has at
//! most `step_tokens` tokens; the first sequence in rank order makes progress whenever anything runs, so every
//! request ends; a request's tokens do not depend on the others (its blocks do, their content does not); drafts take
//! rows and blocks nobody else wants in this step, and what they wrote is never shared before they are verified.
//!
//! Rank is priority, then arrival; a preempted sequence keeps its rank. Deliberately absent: preemption for
//! priority alone (a running sequence is only stopped for lack of blocks), and any overtaking of a waiting request
//! that does not fit yet, since that is how large requests starve.

mod admission;
mod plan;

pub use admission::STOP_TOKENS_MAX;
pub use plan::{BlockCopy, Chunk, Plan};

use crate::fault::BlockSupply;
use crate::kv_blocks::KvBlocks;
use crate::sequence::Sequence;
use crate::speculation::Speculation;
use crate::speculation::cost::RowCost;
use crate::speculation::pace::Outcome;
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::message::{EngineStats, FinishReason, Rejection, Submit, WorkerLimits};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Whether equal prefixes share blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixCache {
    /// Yes.
    On,
    /// Every request computes its whole prompt; for measurements and comparisons.
    Off,
}

/// What the scheduler may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// As told to the gateway.
    pub limits: WorkerLimits,
    /// Most tokens a step computes. Bounds the pause a long prompt makes in everybody's stream.
    pub step_tokens: u32,
    /// Token ids are below it.
    pub vocab_size: u32,
    /// Whether equal prefixes share blocks.
    pub prefix_cache: PrefixCache,
    /// Whether steps carry guesses of tokens to come.
    pub speculation: Speculation,
}

impl SchedulerConfig {
    /// The configuration that can be kept: no context longer than the whole pool, and a step that has room for a
    /// token of every sequence. The gateway is told these limits.
    pub fn normalized(mut self) -> Self {
        let limits = &mut self.limits;
        limits.kv_block_tokens = limits.kv_block_tokens.max(1);
        limits.sequences = limits.sequences.max(1);
        limits.context_tokens =
            limits.context_tokens.min(limits.kv_blocks.saturating_mul(limits.kv_block_tokens));
        self.step_tokens = self.step_tokens.max(limits.sequences);
        self
    }
}

/// The order in which sequences are served: smaller first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank {
    priority: i32,
    /// Position in the order of arrival.
    ticket: u64,
}

/// What became of an accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It waits for its first step.
    Waiting(Rank),
    /// There is nothing left to emit: `max_tokens` is 0, or a resumed request had ended already.
    Finished(FinishReason),
}

/// The scheduler.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    blocks: KvBlocks,
    waiting: BTreeMap<Rank, Sequence>,
    running: BTreeMap<Rank, Sequence>,
    ranks: HashMap<RequestId, Rank>,
    tickets: u64,
    is_draining: bool,
    prefix_queries: u64,
    prefix_hits: u64,
    preemptions: u64,
    drafted: u64,
    accepted: u64,
    row_cost: RowCost,
}

impl Scheduler {
    /// An idle scheduler. The configuration is normalized first.
    pub fn new(config: SchedulerConfig) -> Self {
        let config = config.normalized();
        Self {
            config,
            blocks: KvBlocks::new(config.limits.kv_blocks, config.limits.kv_block_tokens),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            ranks: HashMap::new(),
            tickets: 0,
            is_draining: false,
            prefix_queries: 0,
            prefix_hits: 0,
            preemptions: 0,
            drafted: 0,
            accepted: 0,
            row_cost: RowCost::default(),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Takes a request or says why not. A newer attempt of a request replaces the older one.
    pub fn submit(&mut self, submit: Submit) -> Result<Admission, Rejection> {
        if self.is_draining {
            return Err(Rejection::Draining);
        }
        admission::validate(&submit, &self.config)?;
        if let Some(old) = self.ranks.get(&submit.id).copied() {
            let running = self.sequence(old).map(|sequence| sequence.attempt);
            if running >= Some(submit.attempt) {
                let message = format!("request {} attempt {} is already here", submit.id, submit.attempt);
                return Err(Rejection::Invalid { message });
            }
            self.remove(old);
        }
        let sequence = Sequence::new(submit);
        if let Some(reason) = sequence.end(self.config.limits.context_tokens as usize) {
            return Ok(Admission::Finished(reason));
        }
        let limits = &self.config.limits;
        let room = limits.waiting as usize + limits.sequences as usize;
        if self.ranks.len() >= room {
            return Err(Rejection::Overloaded { waiting: self.waiting.len() as u32, limit: limits.waiting });
        }
        self.tickets += 1;
        let rank = Rank { priority: sequence.limits.priority, ticket: self.tickets };
        self.ranks.insert(sequence.id, rank);
        self.waiting.insert(rank, sequence);
        Ok(Admission::Waiting(rank))
    }

    /// Stops this attempt of a request and frees its blocks. `None` if it is not here.
    pub fn cancel(&mut self, id: RequestId, attempt: Attempt) -> Option<(Rank, Sequence)> {
        let rank = *self.ranks.get(&id)?;
        (self.sequence(rank)?.attempt == attempt).then_some(())?;
        self.remove(rank).map(|sequence| (rank, sequence))
    }

    /// Stops everything.
    pub fn cancel_all(&mut self) {
        let ranks: Vec<Rank> = self.ranks.values().copied().collect();
        ranks.into_iter().for_each(|rank| drop(self.remove(rank)));
    }

    /// From now on every submit is rejected, until [`Self::resume`].
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Takes requests again.
    pub fn resume(&mut self) {
        self.is_draining = false;
    }

    /// Whether there is nothing to compute.
    pub fn is_idle(&self) -> bool {
        self.ranks.is_empty()
    }

    /// Where a request stands in the order of service, while it is here.
    pub fn rank(&self, id: RequestId) -> Option<Rank> {
        self.ranks.get(&id).copied()
    }

    /// A sequence that waits or runs.
    pub fn sequence(&self, rank: Rank) -> Option<&Sequence> {
        self.running.get(&rank).or_else(|| self.waiting.get(&rank))
    }

    /// Tokens of a running request that are not computed yet: 1 when it decodes. `None` if it is not running.
    pub fn pending(&self, id: RequestId) -> Option<usize> {
        Some(self.running.get(self.ranks.get(&id)?)?.pending())
    }

    /// Records that a chunk of the last plan has been computed and that its first `accepted` drafts were drawn, all
    /// of which are emitted by now. Publishes blocks that became full of verified tokens and gives back those that
    /// only held other drafts; what these left in the blocks kept is overwritten by the tokens to come.
    pub fn advance(&mut self, chunk: &Chunk, accepted: usize) {
        self.drafted += chunk.drafts.len() as u64;
        self.accepted += accepted as u64;
        let Some(sequence) = self.running.get_mut(&chunk.rank) else { return };
        debug_assert!(sequence.tokens()[chunk.start + chunk.len..].starts_with(&chunk.drafts[..accepted]));
        sequence.computed += chunk.len + accepted;
        if !chunk.drafts.is_empty() {
            let (drafted, row_cost) = (chunk.drafts.len(), self.row_cost.share());
            sequence.learn(Outcome { drafted, accepted, row_cost });
            let blocks = sequence.tokens().len().div_ceil(self.config.limits.kv_block_tokens as usize);
            let excess = sequence.table.split_off(blocks.min(sequence.table.len()));
            self.blocks.release(&excess);
        }
        if self.config.prefix_cache == PrefixCache::Off {
            return;
        }
        let size = self.config.limits.kv_block_tokens as usize;
        while (sequence.published + 1) * size <= sequence.computed {
            let index = sequence.published;
            let parent = index.checked_sub(1).map(|before| sequence.table[before]);
            let tokens = &sequence.tokens()[index * size..(index + 1) * size];
            let block = self.blocks.publish(parent, sequence.table[index], tokens);
            sequence.table[index] = block;
            sequence.published += 1;
        }
    }

    /// Says whether the next plan finds blocks; for injected faults.
    pub fn supply_blocks(&mut self, supply: BlockSupply) {
        self.blocks.supply(supply);
    }

    /// Records how long a step of `rows` rows took to compute, which decides what guesses are worth.
    pub fn learn_time(&mut self, rows: usize, time: Duration) {
        self.row_cost.learn(rows, time.as_secs_f32() * 1e6);
    }

    /// Appends a drawn token; says why the request has ended with it, in which case [`Self::remove`] is due.
    pub fn emit(&mut self, rank: Rank, token: TokenId) -> Option<FinishReason> {
        let context_tokens = self.config.limits.context_tokens as usize;
        self.running.get_mut(&rank)?.push(token, context_tokens)
    }

    /// Takes a sequence out and frees its blocks.
    pub fn remove(&mut self, rank: Rank) -> Option<Sequence> {
        let mut sequence = self.running.remove(&rank).or_else(|| self.waiting.remove(&rank))?;
        self.ranks.remove(&sequence.id);
        self.blocks.release(&std::mem::take(&mut sequence.table));
        Some(sequence)
    }

    /// Fills in what the scheduler knows of the engine's state.
    pub fn describe(&self, stats: &mut EngineStats) {
        stats.running = self.running.len() as u32;
        stats.waiting = self.waiting.len() as u32;
        stats.kv_blocks_free = self.blocks.unreferenced() as u32;
        stats.kv_blocks_total = self.blocks.total() as u32;
        stats.prefix_queries = self.prefix_queries;
        stats.prefix_hits = self.prefix_hits;
        stats.preemptions = self.preemptions;
        stats.drafted = self.drafted;
        stats.accepted = self.accepted;
    }
}
