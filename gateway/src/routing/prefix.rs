//! Which workers have which beginnings of prompts in their caches, as far as the gateway can know: a bounded table from
//! a hash of the first n chunks of a prompt to the workers that were last handed such a prompt.
//!
//! Two generations stand for an exact order of use: an entry that is not used while [`GENERATION_ENTRIES_MAX`] others
//! are is gone. What a worker evicts the gateway does not hear of, and a hash may collide; either only sends a request
//! to a worker that has no more to do than others.

use shared::ids::{TokenId, WorkerId};
use std::collections::HashMap;

/// Tokens of a chunk: a beginning shorter than this is computed in a step anyway.
pub(super) const CHUNK_TOKENS: usize = 256;
/// Chunks of a prompt that are looked at: 16 384 tokens.
const CHUNKS_MAX: usize = 64;
/// Entries of a generation: 2 MiB with both, and 64 prompts of the longest kind.
const GENERATION_ENTRIES_MAX: usize = 4096;
/// Workers remembered for a beginning, which is enough to choose among.
const HOLDERS_MAX: usize = 4;

/// Hashes of the first chunk, the first two chunks, and so on, of a prompt; empty for a short one.
pub(crate) fn prefix_hashes(prompt: &[TokenId]) -> Vec<u64> {
    let chunks = prompt.chunks_exact(CHUNK_TOKENS).take(CHUNKS_MAX);
    let hashes = chunks.scan(0u64, |hash, chunk| {
        for token in chunk {
            // SplitMix64's finalizer (Steele et al. 2014) over the chain so far and the token.
            let mut z = hash.wrapping_add(u64::from(*token)).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *hash = z ^ (z >> 31);
        }
        Some(*hash)
    });
    hashes.collect()
}

/// Workers that were handed a prompt with some beginning, the latest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Holders([Option<WorkerId>; HOLDERS_MAX]);

impl Holders {
    fn add(&mut self, worker: WorkerId) {
        let known = self.0.iter().position(|held| *held == Some(worker)).unwrap_or(HOLDERS_MAX - 1);
        self.0[..=known].rotate_right(1);
        self.0[0] = Some(worker);
    }

    fn remove(&mut self, worker: WorkerId) {
        for held in &mut self.0 {
            if *held == Some(worker) {
                *held = None;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = WorkerId> {
        self.0.into_iter().flatten()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PrefixTable {
    young: HashMap<u64, Holders>,
    old: HashMap<u64, Holders>,
}

impl PrefixTable {
    /// The worker that holds the longest beginning of a prompt of these hashes, and its length in chunks. Of several,
    /// the one with the least `cost`; workers without one do not count.
    pub(super) fn longest(
        &self,
        prefix: &[u64],
        cost: impl Fn(WorkerId) -> Option<u64>,
    ) -> Option<(WorkerId, usize)> {
        prefix.iter().enumerate().rev().find_map(|(index, hash)| {
            let holders = self.young.get(hash).or_else(|| self.old.get(hash))?;
            let able = holders.iter().filter_map(|worker| Some((cost(worker)?, worker)));
            able.min().map(|(_, worker)| (worker, index + 1))
        })
    }

    /// `worker` will have every beginning of a prompt of these hashes.
    pub(super) fn insert(&mut self, prefix: &[u64], worker: WorkerId) {
        for hash in prefix {
            if self.young.len() >= GENERATION_ENTRIES_MAX && !self.young.contains_key(hash) {
                self.old = std::mem::take(&mut self.young);
            }
            let before = self.old.remove(hash).unwrap_or_default();
            self.young.entry(*hash).or_insert(before).add(worker);
        }
    }

    /// `worker` has nothing any more.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        for holders in self.young.values_mut().chain(self.old.values_mut()) {
            holders.remove(worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prompt(seed: u32, tokens: usize) -> Vec<TokenId> {
        (0..tokens as u32).map(|index| seed.wrapping_mul(7919).wrapping_add(index)).collect()
    }

    #[test]
    fn only_whole_chunks_count_and_equal_beginnings_have_equal_hashes() {
        assert!(prefix_hashes(&prompt(1, CHUNK_TOKENS - 1)).is_empty());
        let long = prompt(1, 3 * CHUNK_TOKENS + 5);
        let mut other = long.clone();
        other[2 * CHUNK_TOKENS] += 1;
        let (long, other) = (prefix_hashes(&long), prefix_hashes(&other));
        assert_eq!((long.len(), &long[..2]), (3, &other[..2]));
        assert_ne!(long[2], other[2]);
        assert_eq!(prefix_hashes(&prompt(1, 1_000_000)).len(), CHUNKS_MAX);
    }

    #[test]
    fn the_longest_beginning_wins_and_among_its_holders_the_cheapest() {
        let mut table = PrefixTable::default();
        let hashes = prefix_hashes(&prompt(1, 4 * CHUNK_TOKENS));
        table.insert(&hashes[..2], WorkerId(0));
        table.insert(&hashes[..3], WorkerId(1));
        table.insert(&hashes[..3], WorkerId(2));
        let cost = |worker: WorkerId| Some(u64::from(10 - worker.0));
        assert_eq!(table.longest(&hashes, cost), Some((WorkerId(2), 3)));
        assert_eq!(table.longest(&hashes[..2], |_| Some(1)), Some((WorkerId(0), 2)));
        let only_first = |worker: WorkerId| (worker.0 == 0).then_some(1);
        assert_eq!(table.longest(&hashes, only_first), Some((WorkerId(0), 2)));
        table.forget(WorkerId(0));
        assert_eq!(table.longest(&hashes, only_first), None);
    }

    #[test]
    fn the_latest_holders_are_kept() {
        let mut table = PrefixTable::default();
        let hashes = prefix_hashes(&prompt(1, CHUNK_TOKENS));
        for worker in [0, 1, 2, 3, 1, 4] {
            table.insert(&hashes, WorkerId(worker));
        }
        let holders: Vec<u32> = table.young[&hashes[0]].iter().map(|worker| worker.0).collect();
        assert_eq!(holders, [4, 1, 3, 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_table_is_bounded_and_keeps_what_is_used(used in 1usize..50, flood in 1usize..20_000) {
            let mut table = PrefixTable::default();
            let hot = [u64::MAX];
            for number in 0..flood {
                table.insert(&[number as u64], WorkerId(0));
                if number % used == 0 {
                    table.insert(&hot, WorkerId(1));
                }
                prop_assert!(table.young.len() <= GENERATION_ENTRIES_MAX);
                prop_assert!(table.old.len() <= GENERATION_ENTRIES_MAX);
            }
            prop_assert_eq!(table.longest(&hot, |_| Some(0)), Some((WorkerId(1), 1)));
        }
    }
}
