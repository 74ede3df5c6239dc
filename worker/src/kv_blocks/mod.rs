//! The pool of KV cache blocks: who references each, what it holds, which to give up next.
//!
//! Called by the scheduler alone; pure bookkeeping over block ids, the keys and values themselves live in the
//! backend. Full blocks are content-addressed: each cached block is a node of a prefix tree whose edges are the
//! block's tokens, found through a hash map per node that compares the tokens themselves. A hash collision can
//! therefore never hand out a block of other tokens.
//!
//! What holds always: a block is free (unreferenced, no content), cached (unreferenced, content known, may be
//! evicted) or referenced; a referenced block is never evicted; the parent of a cached block is cached, since
//! whoever references a block references all before it, and tables are released from the tail.

use crate::fault::BlockSupply;
use shared::ids::TokenId;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Index of a block in the pool.
pub type BlockId = u32;

/// Blocks that continue a prefix, by their tokens.
type Children = HashMap<Arc<[TokenId]>, BlockId>;

#[derive(Debug, Default)]
struct Block {
    references: u32,
    content: Option<Content>,
    /// Key in `KvBlocks::idle` while cached and unreferenced.
    idle_since: u64,
}

/// Where a cached block stands in the prefix tree.
#[derive(Debug)]
struct Content {
    parent: Option<BlockId>,
    tokens: Arc<[TokenId]>,
    children: Children,
}

/// The pool.
#[derive(Debug)]
pub struct KvBlocks {
    blocks: Vec<Block>,
    block_tokens: usize,
    /// Blocks without content, taken from the end.
    free: Vec<BlockId>,
    /// Cached blocks nobody references, least recently used first.
    idle: BTreeMap<u64, BlockId>,
    roots: Children,
    /// Counts releases: the time that orders `idle`.
    releases: u64,
    supply: BlockSupply,
}

impl KvBlocks {
    /// A pool of `total` free blocks of `block_tokens` tokens each.
    pub fn new(total: u32, block_tokens: u32) -> Self {
        Self {
            blocks: (0..total).map(|_| Block::default()).collect(),
            block_tokens: block_tokens as usize,
            free: (0..total).rev().collect(),
            idle: BTreeMap::new(),
            roots: Children::new(),
            releases: 0,
            supply: BlockSupply::Real,
        }
    }

    /// From now on blocks are allocated, or none is, as if every one were referenced.
    pub(crate) fn supply(&mut self, supply: BlockSupply) {
        self.supply = supply;
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks nobody references, cached ones included: what can be allocated.
    pub fn unreferenced(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Whether nobody references `block`.
    pub fn is_unreferenced(&self, block: BlockId) -> bool {
        self.blocks[block as usize].references == 0
    }

    /// The cached block that holds `tokens` (one full block) after `parent`, if any. Takes no reference.
    pub fn find(&self, parent: Option<BlockId>, tokens: &[TokenId]) -> Option<BlockId> {
        self.children(parent)?.get(tokens).copied()
    }

    /// The longest chain of cached blocks that holds a prefix of `tokens`. Takes no reference.
    pub fn find_prefix(&self, tokens: &[TokenId]) -> Vec<BlockId> {
        let mut chain = Vec::new();
        for part in tokens.chunks_exact(self.block_tokens) {
            match self.find(chain.last().copied(), part) {
                Some(block) => chain.push(block),
                None => break,
            }
        }
        chain
    }

    /// References a block that was found or is already referenced.
    pub fn retain(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block as usize];
        if entry.references == 0 {
            self.idle.remove(&entry.idle_since);
        }
        entry.references += 1;
    }

    /// A block of unknown content, referenced once; evicts the least recently used cached one if need be.
    pub fn allocate(&mut self) -> Option<BlockId> {
        if self.supply == BlockSupply::Refused {
            return None;
        }
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                self.forget(block);
                block
            }
        };
        self.blocks[block as usize].references = 1;
        Some(block)
    }

    /// Gives up one reference of each block of a table.
    pub fn release(&mut self, table: &[BlockId]) {
        // From the tail, so that the end of a prefix is evicted before its beginning.
        for &block in table.iter().rev() {
            let entry = &mut self.blocks[block as usize];
            debug_assert!(entry.references > 0, "kv block {block} is released more often than referenced");
            entry.references = entry.references.saturating_sub(1);
            if entry.references > 0 {
                continue;
            }
            if entry.content.is_some() {
                self.releases += 1;
                entry.idle_since = self.releases;
                self.idle.insert(self.releases, block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// Makes a referenced, fully written block findable as `tokens` after `parent` (itself published).
    /// Returns the block to use from now on: another one when the same content is cached already, in which case
    /// the reference moves there.
    pub fn publish(&mut self, parent: Option<BlockId>, block: BlockId, tokens: &[TokenId]) -> BlockId {
        debug_assert_eq!(tokens.len(), self.block_tokens);
        if let Some(twin) = self.find(parent, tokens) {
            if twin != block {
                self.retain(twin);
                self.release(&[block]);
            }
            return twin;
        }
        let tokens: Arc<[TokenId]> = tokens.into();
        if let Some(children) = self.children_mut(parent) {
            children.insert(Arc::clone(&tokens), block);
            self.blocks[block as usize].content = Some(Content { parent, tokens, children: Children::new() });
        }
        block
    }

    fn children(&self, parent: Option<BlockId>) -> Option<&Children> {
        match parent {
            None => Some(&self.roots),
            Some(parent) => self.blocks[parent as usize].content.as_ref().map(|content| &content.children),
        }
    }

    fn children_mut(&mut self, parent: Option<BlockId>) -> Option<&mut Children> {
        match parent {
            None => Some(&mut self.roots),
            Some(parent) => {
                self.blocks[parent as usize].content.as_mut().map(|content| &mut content.children)
            }
        }
    }

    /// Takes an evicted block out of the prefix tree. It has no children: they would have been evicted before.
    fn forget(&mut self, block: BlockId) {
        let Some(content) = self.blocks[block as usize].content.take() else { return };
        debug_assert!(content.children.is_empty(), "kv block {block} is evicted before its children");
        if let Some(siblings) = self.children_mut(content.parent) {
            siblings.remove(&content.tokens);
        }
    }
}

#[cfg(test)]
mod tests;
