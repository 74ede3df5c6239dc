//! The tokens still in the running, and the steps that drop some of them.
//!
//! A candidate is one `u64`: the logit's bits, mapped so that a larger logit is a smaller number, above the token
//! id. Ascending order is then the order everything is defined in (most likely first, lower id first among
//! equals), and comparing costs one instruction. The list is sorted only as far as somebody looks, so a
//! vocabulary of 128k tokens is never sorted as a whole for the few that matter.
//!
//! What holds always: the first `sorted` keys are the smallest, in order. Temperature is kept aside and divides
//! differences of logits when probabilities are needed; it changes no order.

use super::row::{SUM_BLOCK, exp_nonpositive, sum_exp};
use shared::ids::TokenId;

/// Keys sorted at least at a time. Most distributions end within these; measured best between 64 and 512.
const SORT_CHUNK: usize = 128;
/// Growth of the sorted part, so that walking to the end costs about one whole sort.
const SORT_GROWTH: usize = 4;

/// A list that is sorted from the front, as far as asked.
#[derive(Debug, Clone, Default)]
struct LazyOrder<K> {
    keys: Vec<K>,
    sorted: usize,
}

impl<K: Ord + Copy> LazyOrder<K> {
    fn restart(&mut self, keys: impl IntoIterator<Item = K>) {
        self.keys.clear();
        self.keys.extend(keys);
        self.sorted = 0;
    }

    /// Sorts the first `count` keys into place, and usually some more.
    fn sort_to(&mut self, count: usize) {
        let count = count.min(self.keys.len());
        if count <= self.sorted {
            return;
        }
        let target = count.max(self.sorted * SORT_GROWTH).max(SORT_CHUNK).min(self.keys.len());
        let rest = &mut self.keys[self.sorted..];
        let fresh = target - self.sorted;
        if fresh < rest.len() {
            rest.select_nth_unstable(fresh - 1);
        }
        rest[..fresh].sort_unstable();
        self.sorted = target;
    }

    /// The key at `index` in order.
    fn nth(&mut self, index: usize) -> Option<K> {
        self.sort_to(index + 1);
        self.keys.get(index).copied()
    }

    /// Drops all but the first `count` in order.
    fn keep_first(&mut self, count: usize) {
        if count < self.keys.len() {
            self.sort_to(count);
            self.keys.truncate(count);
            self.sorted = count;
        }
    }
}

/// The tokens still in the running. Reused from token to token for its memory.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    order: LazyOrder<u64>,
    by_typicality: LazyOrder<(u32, u64)>,
    max: f32,
    temperature: f32,
}

impl Candidates {
    /// Starts over with every token of `row` (finite or negative infinity, which counts as absent), whose
    /// largest logit is `max`.
    pub fn start(&mut self, row: &[f32], max: f32) {
        self.max = max;
        self.temperature = 1.0;
        self.order.restart(row.iter().enumerate().map(|(token, &logit)| pack(logit, token as TokenId)));
        // Absent tokens are rare: one pass that finds out costs less than a branch for each.
        if row.iter().fold(f32::INFINITY, |least, &logit| if logit < least { logit } else { least })
            == f32::NEG_INFINITY
        {
            self.order.keys.retain(|&key| logit(key) > f32::NEG_INFINITY);
        }
    }

    /// Divides logits by `temperature`; 0 (or less) leaves the most likely token only.
    pub fn temperature(&mut self, temperature: f32) {
        if temperature > 0.0 {
            self.temperature *= temperature;
        } else {
            self.order.keep_first(1);
        }
    }

    /// Keeps the `k` most likely; 0 keeps all.
    pub fn top_k(&mut self, k: usize) {
        if k > 0 {
            self.order.keep_first(k);
        }
    }

    /// Keeps the shortest prefix with probability at least `p`, and `min_keep` tokens in any case; 1 keeps all.
    pub fn top_p(&mut self, p: f32, min_keep: usize) {
        if p >= 1.0 {
            return;
        }
        let goal = f64::from(p) * self.total();
        let (mut sum, mut kept) = (0.0, 0);
        while let Some(key) = self.order.nth(kept) {
            sum += f64::from(self.weight(key));
            kept += 1;
            if sum >= goal && kept >= min_keep {
                break;
            }
        }
        self.order.keep_first(kept);
    }

    /// Keeps tokens at least `p` times as likely as the most likely one, and `min_keep` in any case; 0 keeps all.
    pub fn min_p(&mut self, p: f32, min_keep: usize) {
        if p <= 0.0 {
            return;
        }
        let bar = self.max + p.ln() * self.temperature;
        let likely = self.order.keys.iter().filter(|&&key| logit(key) >= bar).count();
        self.order.keep_first(likely.max(min_keep));
    }

    /// Keeps the most typical tokens, those whose surprise is nearest the distribution's entropy, until their
    /// probability exceeds `p`, and `min_keep` in any case; 1 keeps all. Source: Meister et al. 2022.
    pub fn typical_p(&mut self, p: f32, min_keep: usize) {
        if p >= 1.0 {
            return;
        }
        // Surprise is (max - logit) / temperature + ln(total); the logarithm cancels against the entropy's.
        let depth = |logit: f32| (self.max - logit) / self.temperature;
        let total = self.total();
        let weighted = |&key: &u64| f64::from(self.weight(key)) * f64::from(depth(logit(key)));
        let mean = (self.order.keys.iter().map(weighted).sum::<f64>() / total) as f32;
        // A non-negative float's bits order like the float.
        let scored = self.order.keys.iter().map(|&key| ((depth(logit(key)) - mean).abs().to_bits(), key));
        self.by_typicality.restart(scored);
        let goal = f64::from(p) * total;
        let (mut sum, mut kept) = (0.0, 0);
        while let Some((_, key)) = self.by_typicality.nth(kept) {
            sum += f64::from(self.weight(key));
            kept += 1;
            if sum > goal && kept >= min_keep {
                break;
            }
        }
        self.order.restart(self.by_typicality.keys[..kept].iter().map(|&(_, key)| key));
        // The most likely token itself may have been dropped.
        if let Some(first) = self.order.nth(0) {
            self.max = logit(first);
        }
    }

    /// The token at which the cumulative probability, most likely first, passes `uniform` in [0, 1).
    /// `None` only when there are no candidates.
    pub fn draw(&mut self, uniform: f64) -> Option<TokenId> {
        let goal = uniform * self.total();
        let mut sum = 0.0;
        for index in 0..self.order.keys.len() {
            let key = self.order.nth(index)?;
            let weight = f64::from(self.weight(key));
            sum += weight;
            if sum > goal {
                return Some(token(key));
            }
            if weight == 0.0 {
                break;
            }
        }
        // The total is rounded and may lie past the sum of all weights, by one part in ten million. Such a draw
        // must not fall to the least likely token of the vocabulary.
        self.order.nth(0).map(token)
    }

    /// Tokens left with their probabilities, most likely first.
    pub fn probabilities(&mut self) -> Vec<(TokenId, f64)> {
        self.order.sort_to(usize::MAX);
        let total = self.total();
        self.order.keys.iter().map(|&key| (token(key), f64::from(self.weight(key)) / total)).collect()
    }

    /// Weight relative to the most likely token's.
    fn weight(&self, key: u64) -> f32 {
        exp_nonpositive((logit(key) - self.max) * self.temperature.recip())
    }

    /// Sum of all weights; at least 1 while anything is left.
    fn total(&self) -> f64 {
        let mut logits = [0f32; SUM_BLOCK];
        let mut sum = 0.0;
        for keys in self.order.keys.chunks(SUM_BLOCK) {
            let block = &mut logits[..keys.len()];
            block.iter_mut().zip(keys).for_each(|(place, &key)| *place = logit(key));
            sum += sum_exp(block, self.max, self.temperature.recip());
        }
        sum
    }
}

/// Larger logits first, lower ids first among equals. `logit` is not NaN.
fn pack(logit: f32, token: TokenId) -> u64 {
    // Adding zero turns -0.0 into 0.0, which are equal as logits but not as bits.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(token)
}

fn logit(key: u64) -> f32 {
    let ascending = !((key >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
}

fn token(key: u64) -> TokenId {
    (key & u64::from(u32::MAX)) as TokenId
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packing_keeps_logit_and_token_and_orders_them() {
        let logits = [f32::MAX, 2.0, 1.0, f32::MIN_POSITIVE, 0.0, -1e-30, -1.0, f32::MIN];
        let keys: Vec<u64> = logits.iter().map(|&x| pack(x, 7)).collect();
        assert!(keys.is_sorted());
        for (&key, x) in keys.iter().zip(logits) {
            assert_eq!((logit(key), token(key)), (x, 7));
        }
        assert!(pack(1.0, 3) < pack(1.0, 4));
        assert_eq!(pack(-0.0, 1), pack(0.0, 1));
    }

    proptest! {
        #[test]
        fn lazy_order_agrees_with_a_sort(mut keys in prop::collection::vec(any::<u64>(), 0..2000), looks in prop::collection::vec(0usize..2100, 1..8)) {
            let mut order = LazyOrder::default();
            order.restart(keys.iter().copied());
            keys.sort_unstable();
            for look in looks {
                prop_assert_eq!(order.nth(look), keys.get(look).copied());
            }
            order.keep_first(300);
            order.sort_to(usize::MAX);
            keys.truncate(300);
            prop_assert_eq!(order.keys, keys);
        }
    }
}
