//! One partition of positions for the query vectors of one row tile and key/value head, and merging partitions.
//!
//! The order of every sum: a score is q·k by fused multiply-add over the dimensions in order; the sum of weights
//! takes position p into partial sum p mod 16, then adds these as a tree; a weighted value is a fused multiply-add
//! over the positions in order.

use std::ops::Range;

use super::super::kv_cache::{BLOCK_TOKENS, KvElement, Tiles};
use super::super::math::{self, Kernel, LANES, Simd};
use super::{AttentionParams, PARTITION};

/// 0, 1, … 15.
const LANE_NUMBERS: [f32; LANES] = {
    let mut numbers = [0.0; LANES];
    let mut lane = 1;
    while lane < LANES {
        numbers[lane] = numbers[lane - 1] + 1.0;
        lane += 1;
    }
    numbers
};

/// What is known of a query vector after some partitions: weighted values, then the greatest score and the sum
/// of weights relative to it.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub(super) value_dim: usize,
}

impl Record {
    pub(super) fn len(self) -> usize {
        self.value_dim + LANES
    }

    pub(super) fn sum(self, record: &[f32]) -> f32 {
        record[self.value_dim + 1]
    }

    /// Makes all records those of no position.
    pub(super) fn clear(self, records: &mut [f32]) {
        for record in records.chunks_exact_mut(self.len()) {
            record.fill(0.0);
            record[self.value_dim] = f32::NEG_INFINITY;
        }
    }
}

/// Adds the records of the next partition to those of the ones before.
pub(super) struct Merge<'a> {
    pub(super) record: Record,
    pub(super) part: &'a [f32],
    pub(super) total: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.record.len();
        for (part, total) in self.part.chunks_exact(len).zip(self.total.chunks_exact_mut(len)) {
            let (part, part_state) = part.split_at(self.record.value_dim);
            let (total, state) = total.split_at_mut(self.record.value_dim);
            if part_state[1] == 0.0 {
                // This query sees nothing of the partition (else its sum is at least 1, or not a number).
                continue;
            }
            let highest = if part_state[0] > state[0] { part_state[0] } else { state[0] };
            let exponents = s.load_part(&[state[0] - highest, part_state[0] - highest]);
            let mut factors = [0.0; LANES];
            s.store(math::exp(s, exponents), &mut factors);
            let [keep, add] = [factors[0], factors[1]];
            state[0] = highest;
            state[1] = part_state[1].mul_add(add, state[1] * keep);
            let parts = part.as_chunks::<LANES>().0;
            for (part, total) in parts.iter().zip(total.as_chunks_mut::<LANES>().0) {
                let kept = s.mul(s.load(total), s.splat(keep));
                s.store(s.fma(s.load(part), s.splat(add), kept), total);
            }
        }
    }
}

/// The work on one partition, for any type of keys and values.
pub(super) struct Work<'a> {
    pub(super) kv_head: usize,
    /// The block table from the partition's first block on.
    pub(super) blocks: &'a [u32],
    pub(super) view: View,
    /// [pairs, head_dim]: a pair is a row and one of the heads that share the key/value head.
    pub(super) q: &'a [f32],
    pub(super) head_dim: usize,
    pub(super) record: Record,
    /// Out: a record for each pair.
    pub(super) part: &'a mut [f32],
}

impl Work<'_> {
    #[inline(always)]
    pub(super) fn pairs(&self) -> usize {
        self.q.len() / self.head_dim
    }

    /// The blocks of the partition that some pair sees.
    #[inline(always)]
    pub(super) fn seen_blocks(&self) -> Range<usize> {
        let seen = self.view.seen(0).start..self.view.seen(self.pairs() - 1).end;
        seen.start / BLOCK_TOKENS..seen.end.div_ceil(BLOCK_TOKENS)
    }
}

/// Computes the records of one partition from keys and values stored as floats.
pub(super) struct Partition<'a, T> {
    pub(super) tiles: Tiles<'a, T>,
    pub(super) work: Work<'a>,
}

impl<T: KvElement> Kernel for Partition<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Partition { tiles, work } = self;
        work.record.clear(work.part);
        let pairs = work.pairs();
        let blocks = work.seen_blocks();
        let mut scores = vec![0.0; pairs * PARTITION];
        // Many pairs use a widened copy, few widen as they go.
        let mut wide =
            if pairs > 8 { vec![[0.0; LANES]; work.head_dim.max(work.record.value_dim)] } else { vec![] };
        let mut block = blocks.start;
        while block < blocks.end {
            let keys = |ahead: usize| tiles.keys(work.blocks[block + ahead], work.kv_head);
            let scores = &mut scores[block * BLOCK_TOKENS..];
            block += if pairs > 8 {
                widen(s, keys(0), &mut wide);
                dot_products(s, [&wide[..work.head_dim]], [&wide], work.q, scores)
            } else {
                // Few queries have too few sums of their own to keep the multipliers busy.
                let left = blocks.end - block;
                let values = tiles.values(work.blocks[blocks.start], work.kv_head);
                let next = |ahead: usize| if ahead < left { keys(ahead) } else { values };
                match left {
                    4.. if pairs <= 2 => {
                        let next = [next(4), next(5), next(6), next(7)];
                        dot_products(s, [keys(0), keys(1), keys(2), keys(3)], next, work.q, scores)
                    }
                    2.. if pairs < 8 => {
                        dot_products(s, [keys(0), keys(1)], [next(2), next(3)], work.q, scores)
                    }
                    _ => dot_products(s, [keys(0)], [next(1)], work.q, scores),
                }
            };
        }
        let records = work.part.chunks_exact_mut(work.record.len());
        for ((pair, scores), record) in scores.chunks_exact_mut(PARTITION).enumerate().zip(records) {
            work.view.softmax(s, pair, scores, &mut record[work.record.value_dim..]);
        }
        let mut mix = Mix { view: work.view, record: work.record, weights: &scores, part: work.part };
        for block in blocks.clone() {
            let values = |block: usize| tiles.values(work.blocks[block], work.kv_head);
            let (values, next) = (values(block), values((block + 1).min(blocks.end - 1)));
            if pairs > 8 {
                widen(s, values, &mut wide);
                let wide = &wide[..values.len()];
                mix.add_values(s, [wide, wide], block);
            } else {
                mix.add_values(s, [values, next], block);
            }
        }
    }
}

/// Which positions of one partition the pairs see, and how their scores are shaped.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub(super) params: AttentionParams,
    /// Position of the first row.
    pub(super) first_position: usize,
    /// First position of the partition.
    pub(super) start: usize,
    /// Query heads of a row that share the key/value head.
    pub(super) group: usize,
}

impl View {
    /// The positions of the partition that `pair` sees, counted from the partition's start. Both ends never
    /// fall from one pair to the next.
    #[inline(always)]
    pub(super) fn seen(&self, pair: usize) -> Range<usize> {
        let seen = self.params.seen_from(self.first_position + pair / self.group);
        let inside = |position: usize| position.clamp(self.start, self.start + PARTITION) - self.start;
        inside(seen.start)..inside(seen.end)
    }

    /// [`Partition::seen`] inside one block, counted from the block's start.
    #[inline(always)]
    fn seen_in_block(&self, pair: usize, block: usize) -> Range<usize> {
        let (seen, start) = (self.seen(pair), block * BLOCK_TOKENS);
        let inside = |position: usize| position.clamp(start, start + BLOCK_TOKENS) - start;
        inside(seen.start)..inside(seen.end)
    }

    /// Turns the raw products of a pair into weights, and notes their greatest score and sum. Weights of positions
    /// that the pair does not see are 0 inside the blocks it sees, and untouched elsewhere.
    #[inline(always)]
    pub(super) fn softmax<S: Simd>(&self, s: S, pair: usize, scores: &mut [f32], state: &mut [f32]) {
        let seen = self.seen(pair);
        if seen.is_empty() {
            return;
        }
        let lanes = s.load(&LANE_NUMBERS);
        let none = s.splat(f32::NEG_INFINITY);
        let mut highest = none;
        let scores = scores.as_chunks_mut::<LANES>().0;
        let blocks = seen.start / BLOCK_TOKENS..seen.end.div_ceil(BLOCK_TOKENS);
        for block in blocks.clone() {
            let mut score = s.mul(s.load(&scores[block]), s.splat(self.params.scale));
            if let Some(cap) = self.params.softcap {
                score = s.mul(s.splat(cap), math::tanh(s, s.div(score, s.splat(cap))));
            }
            let inside = self.seen_in_block(pair, block);
            if inside.len() < BLOCK_TOKENS {
                score = s.select_less(lanes, s.splat(inside.end as f32), score, none);
                score = s.select_less(lanes, s.splat(inside.start as f32), none, score);
            }
            highest = s.max(score, highest);
            s.store(score, &mut scores[block]);
        }
        let highest = s.highest(highest);
        let mut sum = s.splat(0.0);
        for score in &mut scores[blocks] {
            let weight = math::exp(s, s.sub(s.load(score), s.splat(highest)));
            sum = s.add(sum, weight);
            s.store(weight, score);
        }
        state[0] = highest;
        state[1] = s.sum(sum);
    }
}

/// The second half of the work: weighted values.
struct Mix<'a> {
    view: View,
    record: Record,
    /// A row of [`PARTITION`] for each pair.
    weights: &'a [f32],
    part: &'a mut [f32],
}

impl Mix<'_> {
    /// Adds the values of a block, times their weights, to the records of the pairs that see them. `values` are
    /// the block's and those to fetch ahead.
    #[inline(always)]
    fn add_values<S: Simd, V: KvElement>(&mut self, s: S, values: [&[[V; LANES]]; 2], block: usize) {
        let len = self.record.len();
        let pairs = self.part.len() / len;
        let mut pair = 0;
        while pair < pairs {
            let tokens = self.view.seen_in_block(pair, block);
            let mut count = rows_at_once(s, pairs - pair);
            if self.view.seen_in_block(pair + count - 1, block) != tokens {
                // Rows that see different parts of the block must not read each other's tokens.
                count = 1;
            }
            let weights = &self.weights[pair * PARTITION + block * BLOCK_TOKENS..];
            let records = &mut self.part[pair * len..];
            match count {
                8 => add_weighted::<S, V, 8, 1>(s, values, tokens, weights, records, len),
                4 => add_weighted::<S, V, 4, 2>(s, values, tokens, weights, records, len),
                2 => add_weighted::<S, V, 2, 4>(s, values, tokens, weights, records, len),
                _ => add_weighted::<S, V, 1, 4>(s, values, tokens, weights, records, len),
            }
            pair += count;
        }
    }
}

/// How many of `left` pairs the register file takes together: 8, 4, 2 or 1.
#[inline(always)]
pub(super) fn rows_at_once<S: Simd>(_: S, left: usize) -> usize {
    match left {
        8.. if S::WIDE => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Whether vector `index` of a row of vectors of `T` begins a cache line (when the row does).
#[inline(always)]
pub(super) fn starts_line<T>(index: usize) -> bool {
    (index * size_of::<[T; LANES]>()).is_multiple_of(64)
}

#[inline(always)]
fn widen<S: Simd, T: KvElement>(s: S, from: &[[T; LANES]], to: &mut [[f32; LANES]]) {
    for (from, to) in from.iter().zip(to) {
        s.store(T::widen(s, from), to);
    }
}

/// The products of every query with the keys of B neighbouring blocks. `scores` has a row of [`PARTITION`] for
/// each query and begins at the first block's column. `next` is fetched ahead. Returns B.
#[inline(always)]
fn dot_products<S: Simd, K: KvElement, const B: usize>(
    s: S,
    keys: [&[[K; LANES]]; B],
    next: [&[[K; LANES]]; B],
    q: &[f32],
    scores: &mut [f32],
) -> usize {
    let dim = keys[0].len();
    let pairs = q.len() / dim;
    let mut pair = 0;
    while pair < pairs {
        let (q, scores) = (&q[pair * dim..], &mut scores[pair * PARTITION..]);
        let count = rows_at_once(s, pairs - pair);
        match count {
            8 => dot_rows::<S, K, B, 8>(s, keys, next, q, scores),
            4 => dot_rows::<S, K, B, 4>(s, keys, next, q, scores),
            2 => dot_rows::<S, K, B, 2>(s, keys, next, q, scores),
            _ => dot_rows::<S, K, B, 1>(s, keys, next, q, scores),
        }
        pair += count;
    }
    B
}

#[inline(always)]
fn dot_rows<S: Simd, K: KvElement, const B: usize, const R: usize>(
    s: S,
    keys: [&[[K; LANES]]; B],
    next: [&[[K; LANES]]; B],
    q: &[f32],
    scores: &mut [f32],
) {
    let dim = keys[0].len();
    let q = &q[..R * dim];
    assert!(keys.iter().all(|keys| keys.len() == dim), "tiles of one cache are of one size");
    assert!(next.iter().all(|next| next.len() >= dim), "what comes next is as long");
    let mut sums = [[s.splat(0.0); B]; R];
    for d in 0..dim {
        let mut wide = [s.splat(0.0); B];
        for ((wide, keys), next) in wide.iter_mut().zip(keys).zip(next) {
            // SAFETY: d < dim, and all have `dim` keys.
            *wide = K::widen(s, unsafe { keys.get_unchecked(d) });
            if starts_line::<K>(d) {
                // SAFETY: d < dim, and all have at least `dim` vectors.
                s.prefetch(unsafe { next.get_unchecked(d) });
            }
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row < R and d < dim, so this is inside `q` as cut above.
            let q = s.splat(unsafe { *q.get_unchecked(row * dim + d) });
            for (sum, &key) in sums.iter_mut().zip(&wide) {
                *sum = s.fma(q, key, *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let scores = &mut scores[row * PARTITION..][..B * LANES];
        for (sum, to) in sums.iter().zip(scores.as_chunks_mut().0) {
            s.store(*sum, to);
        }
    }
}

/// Adds `values` of `tokens`, times the weights of R rows, to R records, C vectors of dimensions at a time.
#[inline(always)]
fn add_weighted<S: Simd, V: KvElement, const R: usize, const C: usize>(
    s: S,
    values: [&[[V; LANES]]; 2],
    tokens: Range<usize>,
    weights: &[f32],
    records: &mut [f32],
    len: usize,
) {
    let vectors = values[0].len() / BLOCK_TOKENS;
    let whole = vectors - vectors % C;
    for first in (0..whole).step_by(C) {
        add_columns::<S, V, R, C>(s, values, first, tokens.clone(), weights, records, len);
    }
    for first in whole..vectors {
        add_columns::<S, V, R, 1>(s, values, first, tokens.clone(), weights, records, len);
    }
}

#[inline(always)]
fn add_columns<S: Simd, V: KvElement, const R: usize, const C: usize>(
    s: S,
    values: [&[[V; LANES]]; 2],
    first: usize,
    tokens: Range<usize>,
    weights: &[f32],
    records: &mut [f32],
    len: usize,
) {
    let vectors = values[0].len() / BLOCK_TOKENS;
    let weights = &weights[..(R - 1) * PARTITION + BLOCK_TOKENS];
    let mut sums = [[s.splat(0.0); C]; R];
    for (row, sums) in sums.iter_mut().enumerate() {
        let from = &records[row * len + first * LANES..][..C * LANES];
        for (sum, from) in sums.iter_mut().zip(from.as_chunks().0) {
            *sum = s.load(from);
        }
    }
    for token in tokens {
        let [value, next] = values;
        let value = &value[token * vectors + first..][..C];
        // In order of addresses, unlike the loads: then the processor's own prefetching runs ahead, which keeps
        // more lines in flight than these requests can.
        let ahead = first * BLOCK_TOKENS + token * C;
        for (column, next) in next[ahead..][..C].iter().enumerate() {
            if starts_line::<V>(column) {
                s.prefetch(next);
            }
        }
        let mut wide = [s.splat(0.0); C];
        for (wide, value) in wide.iter_mut().zip(value) {
            *wide = V::widen(s, value);
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row < R, and token < 16 since the values are 16 · vectors elements; see the cut above.
            let weight = s.splat(unsafe { *weights.get_unchecked(row * PARTITION + token) });
            for (sum, &value) in sums.iter_mut().zip(&wide) {
                *sum = s.fma(weight, value, *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let to = &mut records[row * len + first * LANES..][..C * LANES];
        for (sum, to) in sums.iter().zip(to.as_chunks_mut().0) {
            s.store(*sum, to);
        }
    }
}
