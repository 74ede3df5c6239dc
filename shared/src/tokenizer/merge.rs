//! The merge loop that byte-level BPE and SentencePiece-style vocabularies share.
//!
//! A word starts as a row of symbols, one for each byte or character. While any neighbours form a known
//! pair, the best pair is replaced by its product: lowest priority number first, leftmost among equals. The
//! two kinds of vocabulary differ only in what pairs there are and where the priorities come from.
//!
//! A queue of candidates over a linked list makes that n log n in the length of the word. There is no faster
//! way in use for short words: most words never get here (see `tokenizer::words`).
//!
//! Memory: at most about 100 bytes per byte of the longest word, which is cut at [`MAX_WORD_BYTES`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::hash_map::Entry;

use super::hash::FastMap;

/// Longer words are merged in parts: it keeps positions within 32 bits and working memory within some
/// 100 MiB. Only text of a million letters without a space between them has such words.
pub(super) const MAX_WORD_BYTES: usize = 1 << 20;

/// A symbol that is no part of any pair.
pub(super) const NO_SYMBOL: u32 = u32::MAX;

/// Marks a symbol that was merged into its left neighbour, and the ends of the list.
const NONE: u32 = u32::MAX;

/// Which pairs of symbols merge, into what, and how urgently.
#[derive(Default)]
pub(super) struct MergeTable {
    pairs: FastMap<(u32, u32), Product>,
}

#[derive(Clone, Copy)]
struct Product {
    priority: u32,
    symbol: u32,
}

impl MergeTable {
    pub(super) fn with_capacity(pairs: usize) -> Self {
        Self { pairs: FastMap::with_capacity_and_hasher(pairs, Default::default()) }
    }

    /// Adds a pair; one that is there already keeps its first meaning.
    pub(super) fn insert(&mut self, left: u32, right: u32, priority: u32, symbol: u32) {
        if let Entry::Vacant(vacant) = self.pairs.entry((left, right)) {
            vacant.insert(Product { priority, symbol });
        }
    }

    fn get(&self, left: u32, right: u32) -> Option<Product> {
        self.pairs.get(&(left, right)).copied()
    }
}

/// One symbol of a word, and where its neighbours are.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    len_bytes: u32,
    previous: u32,
    next: u32,
}

/// A pair that could be merged, as it was when it was found; ordered by priority, then by position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    right: u32,
    left_id: u32,
    right_id: u32,
    product: u32,
}

/// The working memory of [`merge`](Merger::merge), reused from word to word.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
    /// Merges done so far, for tests that watch how work grows with length.
    #[cfg(test)]
    pub(super) steps: usize,
}

impl Merger {
    /// Starts a new word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Adds the next symbol of the word, which stands for `len_bytes` bytes of it.
    pub(super) fn push(&mut self, id: u32, len_bytes: u32) {
        let at = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol { id, len_bytes, previous: at.wrapping_sub(1), next: NONE });
    }

    /// Merges until no pair is left, then calls `emit` with each remaining symbol and its length in bytes.
    pub(super) fn merge(&mut self, table: &MergeTable, mut emit: impl FnMut(u32, usize)) {
        for right in 1..self.symbols.len() as u32 {
            self.enqueue(table, right - 1, right);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            #[cfg(test)]
            {
                self.steps += 1;
            }
            self.apply(table, candidate);
        }
        let mut at = 0;
        while let Some(symbol) = self.symbols.get(at as usize) {
            emit(symbol.id, symbol.len_bytes as usize);
            at = symbol.next;
        }
    }

    /// Merges the candidate's symbols, unless one of them has changed since it was found.
    fn apply(&mut self, table: &MergeTable, candidate: Candidate) {
        let Candidate { left, right, left_id, right_id, product, .. } = candidate;
        let Some(&gone) = self.symbols.get(right as usize) else { return };
        let Some(kept) = self.symbols.get_mut(left as usize) else { return };
        if kept.next != right || kept.id != left_id || gone.id != right_id {
            return;
        }
        kept.id = product;
        kept.len_bytes += gone.len_bytes;
        kept.next = gone.next;
        let previous = kept.previous;
        if let Some(gone) = self.symbols.get_mut(right as usize) {
            gone.id = NO_SYMBOL;
            gone.next = NONE;
        }
        if let Some(next) = self.symbols.get_mut(gone.next as usize) {
            next.previous = left;
        }
        self.enqueue(table, previous, left);
        self.enqueue(table, left, gone.next);
    }

    fn enqueue(&mut self, table: &MergeTable, left: u32, right: u32) {
        let (Some(first), Some(second)) = (self.symbols.get(left as usize), self.symbols.get(right as usize))
        else {
            return;
        };
        let (left_id, right_id) = (first.id, second.id);
        if let Some(Product { priority, symbol: product }) = table.get(left_id, right_id) {
            self.queue.push(Reverse(Candidate { priority, left, right, left_id, right_id, product }));
        }
    }
}
