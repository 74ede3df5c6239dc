//! What one engine step computes, as flat arrays: the seam between scheduler and model.
//!
//! The engine builds a [`Batch`] from the scheduler's plan; the model's forward pass reads it and nothing else.
//! What holds always: spans are contiguous and in row order, every position of a span has a slot in its block
//! table, and `tokens.len() == positions.len() == slots.len()`.

use crate::activity::Activity;
use shared::ids::TokenId;
use std::ops::Range;
use std::sync::Arc;

/// Where the key and value of one token row go in the paged cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSlot {
    /// Block in the pool.
    pub block: u32,
    /// Token within the block, below the block size.
    pub offset: u32,
}

/// Consecutive rows of one sequence: one token when decoding, a chunk of the prompt when prefilling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first row in its sequence; the others follow.
    pub first_position: u32,
    /// Range of [`Batch::block_tables`] with the sequence's blocks from position 0 on.
    pub blocks: Range<usize>,
}

/// One step's rows. Buffers are reused from step to step with [`Batch::clear`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token of each row.
    pub tokens: Vec<TokenId>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Cache slot of each row.
    pub slots: Vec<KvSlot>,
    /// The sequences.
    pub spans: Vec<Span>,
    /// Block tables of all spans, one after the other.
    pub block_tables: Vec<u32>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<usize>,
}

impl Batch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.block_tables.clear();
        self.logit_rows.clear();
    }

    /// Appends a span: `tokens` at `first_position..` of a sequence whose blocks are `block_table`.
    /// `block_tokens` is the cache's block size. Returns the span's rows.
    pub fn push(
        &mut self,
        tokens: &[TokenId],
        first_position: u32,
        block_table: &[u32],
        block_tokens: u32,
    ) -> Range<usize> {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        for (position, _) in (first_position..).zip(tokens) {
            self.positions.push(position);
            let block = block_table[(position / block_tokens) as usize];
            self.slots.push(KvSlot { block, offset: position % block_tokens });
        }
        let blocks = self.block_tables.len()..self.block_tables.len() + block_table.len();
        self.block_tables.extend_from_slice(block_table);
        self.spans.push(Span { rows: rows.clone(), first_position, blocks });
        rows
    }
}

/// Computes logits for a batch: the model over some backend, or a scripted stand-in in the engine's tests.
pub trait Forward {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Runs the batch and writes its keys and values to the cache.
    /// Returns f32 logits `[batch.logit_rows.len(), vocab_size]`, row-major, valid until the next call.
    fn forward(&mut self, batch: &Batch) -> Result<&[f32], Self::Error>;

    /// Columns of the logits.
    fn vocab_size(&self) -> usize;

    /// Copies one KV block onto another in every layer (copy-on-write).
    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), Self::Error>;

    /// From now on [`Self::forward`] tells `activity` of its progress, so that a long pass is not taken for a hang.
    /// Nothing to do where a pass is always short.
    fn report_to(&mut self, _activity: Arc<Activity>) {}
}
