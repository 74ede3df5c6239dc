//! One partition of positions over a q8_0 cache: products of integers, for the same records as `partition` makes.
//!
//! A query, and the weights of a partition, are rounded once to 15 bits and a sign relative to their largest: a
//! hundredth of the step that keys and values were rounded to. Products of these with the bytes of the cache are
//! added exactly in 32 bits, two at a time, so no order matters inside a sum. The order of f32 operations is: a score adds the
//! groups of 32 dimensions by fused multiply-add in order; a value is one sum over the partition times one scale.
//! No sum overflows: 512 positions of weights below 2^15 with codes up to 127 stay below 2^31.

use super::super::kv_cache::{BLOCK_TOKENS, KEY_GROUP, QuantizedTile, QuantizedTiles};
use super::super::math::{Kernel, LANES, Simd};
use super::PARTITION;
use super::partition::{Work, rows_at_once};

/// The largest query or weight code. `PARTITION · CODE_MAX · 127 < 2^31`.
const CODE_MAX: f32 = 32767.0;
const _: () = assert!(PARTITION as u64 * 32767 * 127 < 1 << 31);
/// Pairs of dimensions in a group of keys.
const GROUP_PAIRS: usize = KEY_GROUP / 2;
/// Pairs of tokens in a block.
const TOKEN_PAIRS: usize = BLOCK_TOKENS / 2;
/// Blocks whose values are added before the sums go back to memory.
const BLOCKS_PER_PASS: usize = 4;

/// Sixteen lanes of two codes.
type Codes = [[i8; 2]; LANES];

/// Computes the records of one partition from keys and values stored in q8_0.
pub(super) struct QuantizedPartition<'a> {
    pub(super) tiles: QuantizedTiles<'a>,
    pub(super) work: Work<'a>,
}

impl Kernel for QuantizedPartition<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let QuantizedPartition { tiles, work } = self;
        work.record.clear(work.part);
        let (pairs, blocks) = (work.pairs(), work.seen_blocks());
        let tile = |block: usize| tiles.tile(work.blocks[block], work.kv_head);
        let queries = Queries::round(s, work.q, work.head_dim);
        let mut scores = vec![0.0; pairs * PARTITION];
        let mut value_scales = [[0.0; LANES]; PARTITION / BLOCK_TOKENS];
        let mut block = blocks.start;
        while block < blocks.end {
            let left = blocks.end - block;
            let at = |ahead: usize| tile(block + ahead);
            // After the keys come the values.
            let next = |ahead: usize| {
                if ahead < left { at(ahead).key_codes } else { tile(blocks.start).value_codes }
            };
            let scores = &mut scores[block * BLOCK_TOKENS..];
            let done = match left {
                4.. if pairs <= 2 => {
                    let next = [next(4), next(5), next(6), next(7)];
                    queries.score(s, [at(0), at(1), at(2), at(3)], next, scores)
                }
                2.. if pairs < 8 => queries.score(s, [at(0), at(1)], [next(2), next(3)], scores),
                _ => queries.score(s, [at(0)], [next(1)], scores),
            };
            for (block, scales) in (block..).zip(&mut value_scales[block..block + done]) {
                s.store(s.load_f16(tile(block).value_scales), scales);
            }
            block += done;
        }
        let mut weights = Weights::new(pairs);
        for (pair, record) in work.part.chunks_exact_mut(work.record.len()).enumerate() {
            let scores = &mut scores[pair * PARTITION..][..PARTITION];
            let state = &mut record[work.record.value_dim..];
            work.view.softmax(s, pair, scores, state);
            let seen = work.view.seen(pair);
            let seen = seen.start / BLOCK_TOKENS..seen.end.div_ceil(BLOCK_TOKENS);
            if !seen.is_empty() {
                let scores = &mut scores.as_chunks_mut().0[seen.clone()];
                state[1] += weights.round(s, (pair, seen.start), scores, &value_scales[seen]);
            }
        }
        let mut first = blocks.start;
        let vectors = work.record.value_dim / LANES;
        let mut sums = vec![s.zero_integers(); pairs * vectors];
        while first < blocks.end {
            let count = BLOCKS_PER_PASS.min(blocks.end - first);
            let values = |block: usize| tile(block.min(blocks.end - 1)).value_codes;
            weights.add_values(s, first..first + count, values, &mut sums);
            first += count;
        }
        let records = work.part.chunks_exact_mut(work.record.len());
        for ((record, sums), &scale) in records.zip(sums.chunks_exact(vectors)).zip(&weights.scales) {
            for (value, &sum) in record.as_chunks_mut().0.iter_mut().zip(sums) {
                s.store(s.mul(s.floats(sum), s.splat(scale)), value);
            }
        }
    }
}

/// Queries as integers.
struct Queries {
    /// `[pairs, pairs of dimensions]`, the last one filled up with 0.
    codes: Vec<[i16; 2]>,
    /// What code 1 of each pair stands for.
    scales: Vec<f32>,
}

/// What code 1 stands for and the codes of 1.0, for numbers up to `largest`. A `defect` that is no number shows in
/// the first.
#[inline(always)]
fn scale_for(largest: f32, defect: f32) -> [f32; 2] {
    let inverse = CODE_MAX / largest;
    [largest / CODE_MAX + defect, if inverse.is_finite() { inverse } else { 0.0 }]
}

/// Sixteen numbers as codes; where one is no number, any code.
#[inline(always)]
fn store_codes<S: Simd>(s: S, x: S::F, inverse: f32, codes: &mut [i16; LANES]) {
    let x = s.mul(x, s.splat(inverse));
    s.store_i16(s.max(s.min(x, s.splat(CODE_MAX)), s.splat(-CODE_MAX)), codes);
}

impl Queries {
    #[inline(always)]
    fn round<S: Simd>(s: S, q: &[f32], head_dim: usize) -> Queries {
        let pairs = q.len() / head_dim;
        let padded = head_dim.next_multiple_of(LANES);
        let row = head_dim.div_ceil(2);
        let mut queries = Queries { codes: vec![[0; 2]; pairs * row], scales: Vec::with_capacity(pairs) };
        let mut codes = vec![0; padded];
        for (q, to) in q.chunks_exact(head_dim).zip(queries.codes.chunks_exact_mut(row)) {
            let zero = s.splat(0.0);
            let (mut largest, mut defect) = (zero, zero);
            for q in q.chunks(LANES) {
                let q = s.load_part(q);
                largest = s.max(s.max(q, s.sub(zero, q)), largest);
                defect = s.fma(q, zero, defect);
            }
            let [scale, inverse] = scale_for(s.highest(largest), s.sum(defect));
            queries.scales.push(scale);
            for (q, codes) in q.chunks(LANES).zip(codes.as_chunks_mut().0) {
                store_codes(s, s.load_part(q), inverse, codes);
            }
            to.copy_from_slice(&codes.as_chunks().0[..row]);
        }
        queries
    }

    /// The products of every query with the keys of B neighbouring blocks: `scores` has a row of [`PARTITION`]
    /// for each query and begins at the first block's column. What comes `next` is fetched ahead. Returns B.
    #[inline(always)]
    fn score<S: Simd, const B: usize>(
        &self,
        s: S,
        tiles: [QuantizedTile<'_>; B],
        next: [&[Codes]; B],
        scores: &mut [f32],
    ) -> usize {
        let mut pair = 0;
        while pair < self.scales.len() {
            let count = rows_at_once(s, self.scales.len() - pair);
            match count {
                8 => self.score_rows::<S, B, 8>(s, tiles, next, pair, scores),
                4 => self.score_rows::<S, B, 4>(s, tiles, next, pair, scores),
                2 => self.score_rows::<S, B, 2>(s, tiles, next, pair, scores),
                _ => self.score_rows::<S, B, 1>(s, tiles, next, pair, scores),
            }
            pair += count;
        }
        B
    }

    #[inline(always)]
    fn score_rows<S: Simd, const B: usize, const R: usize>(
        &self,
        s: S,
        tiles: [QuantizedTile<'_>; B],
        next: [&[Codes]; B],
        pair: usize,
        scores: &mut [f32],
    ) {
        let row = self.codes.len() / self.scales.len();
        let q = &self.codes[pair * row..(pair + R) * row];
        let keys = tiles.map(|tile| &tile.key_codes[..row]);
        let mut totals = [[s.splat(0.0); B]; R];
        for group in 0..row.div_ceil(GROUP_PAIRS) {
            let mut sums = [[s.zero_integers(); B]; R];
            for d in group * GROUP_PAIRS..row.min((group + 1) * GROUP_PAIRS) {
                // SAFETY: d < row, and all keys have `row` vectors.
                let wide = keys.map(|keys| s.load_pairs(unsafe { keys.get_unchecked(d) }));
                if d % 2 == 0 {
                    for next in &next {
                        s.prefetch(&next[d]);
                    }
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: r < R and d < row, so this is inside `q` as cut above.
                    let q = unsafe { *q.get_unchecked(r * row + d) };
                    for (sum, &key) in sums.iter_mut().zip(&wide) {
                        *sum = s.dot_pairs(key, q, *sum);
                    }
                }
            }
            let scales = tiles.map(|tile| s.load_f16(&tile.key_scales[group]));
            for (totals, sums) in totals.iter_mut().zip(&sums) {
                for ((total, &sum), &scale) in totals.iter_mut().zip(sums).zip(&scales) {
                    *total = s.fma(s.floats(sum), scale, *total);
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            let scale = s.splat(self.scales[pair + r]);
            let scores = &mut scores[(pair + r) * PARTITION..][..B * LANES];
            for (&total, to) in totals.iter().zip(scores.as_chunks_mut().0) {
                s.store(s.mul(total, scale), to);
            }
        }
    }
}

/// The weights of a partition as integers, the scales of the values in them.
struct Weights {
    /// `[pairs, pairs of positions]`; 0 where a pair does not see.
    codes: Vec<[[i16; 2]; PARTITION / 2]>,
    /// What code 1 of each pair stands for.
    scales: Vec<f32>,
}

impl Weights {
    fn new(pairs: usize) -> Weights {
        Weights { codes: vec![[[0; 2]; PARTITION / 2]; pairs], scales: vec![0.0; pairs] }
    }

    /// Multiplies the weights of a pair, those of the blocks from `first_block` on, with the values' scales and
    /// rounds them. Returns 0, or no number where a scale is none.
    #[inline(always)]
    fn round<S: Simd>(
        &mut self,
        s: S,
        (pair, first_block): (usize, usize),
        weights: &mut [[f32; LANES]],
        value_scales: &[[f32; LANES]],
    ) -> f32 {
        let zero = s.splat(0.0);
        let (mut largest, mut defect) = (zero, zero);
        for (weight, scale) in weights.iter_mut().zip(value_scales) {
            let plain = s.load(weight);
            // A position that is not seen may hold any scale.
            let product = s.select_less(zero, plain, s.mul(plain, s.load(scale)), zero);
            largest = s.max(product, largest);
            defect = s.fma(product, zero, defect);
            s.store(product, weight);
        }
        let [scale, inverse] = scale_for(s.highest(largest), 0.0);
        self.scales[pair] = scale;
        let codes: &mut [[i16; LANES]] = bytemuck::cast_slice_mut(&mut self.codes[pair][..]);
        for (weight, codes) in weights.iter().zip(&mut codes[first_block..]) {
            store_codes(s, s.load(weight), inverse, codes);
        }
        s.sum(defect)
    }

    /// Adds the `values` of some blocks to `sums` `[pairs, vectors of dimensions]`.
    #[inline(always)]
    fn add_values<'a, S: Simd>(
        &self,
        s: S,
        blocks: std::ops::Range<usize>,
        values: impl Fn(usize) -> &'a [Codes],
        sums: &mut [S::I],
    ) {
        let mut held: [[&[Codes]; 2]; BLOCKS_PER_PASS] = [[&[]; 2]; BLOCKS_PER_PASS];
        for (held, block) in held.iter_mut().zip(blocks.clone()) {
            *held = [values(block), values(block + BLOCKS_PER_PASS)];
        }
        let pass = Pass { values: &held[..blocks.len()], first_pair: blocks.start * TOKEN_PAIRS };
        let pairs = self.scales.len();
        let vectors = sums.len() / pairs;
        let mut pair = 0;
        while pair < pairs {
            let count = rows_at_once(s, pairs - pair);
            let weights = &self.codes[pair..pair + count];
            let sums = &mut sums[pair * vectors..];
            match count {
                8 => pass.add_rows::<S, 8, 2>(s, weights, sums, vectors),
                4 => pass.add_rows::<S, 4, 2>(s, weights, sums, vectors),
                2 => pass.add_rows::<S, 2, 4>(s, weights, sums, vectors),
                _ => pass.add_rows::<S, 1, 4>(s, weights, sums, vectors),
            }
            pair += count;
        }
    }
}

/// The values of some neighbouring blocks, each with those to fetch ahead.
struct Pass<'a> {
    values: &'a [[&'a [Codes]; 2]],
    /// First pair of positions in the partition.
    first_pair: usize,
}

impl Pass<'_> {
    /// R rows of weights, C vectors of dimensions at a time.
    #[inline(always)]
    fn add_rows<S: Simd, const R: usize, const C: usize>(
        &self,
        s: S,
        weights: &[[[i16; 2]; PARTITION / 2]],
        sums: &mut [S::I],
        vectors: usize,
    ) {
        let whole = vectors - vectors % C;
        for first in (0..whole).step_by(C) {
            self.add_columns::<S, R, C>(s, weights, sums, (first, vectors));
        }
        for first in whole..vectors {
            self.add_columns::<S, R, 1>(s, weights, sums, (first, vectors));
        }
    }

    #[inline(always)]
    fn add_columns<S: Simd, const R: usize, const C: usize>(
        &self,
        s: S,
        weights: &[[[i16; 2]; PARTITION / 2]],
        sums: &mut [S::I],
        (first, vectors): (usize, usize),
    ) {
        let weights = &weights[..R];
        let mut held = [[s.zero_integers(); C]; R];
        for (held, sums) in held.iter_mut().zip(sums.chunks_exact(vectors)) {
            held.copy_from_slice(&sums[first..first + C]);
        }
        for ([values, next], block_pair) in self.values.iter().zip((self.first_pair..).step_by(TOKEN_PAIRS)) {
            // In order of addresses, unlike the loads: see `partition`.
            let next = next[first * TOKEN_PAIRS..].chunks_exact(C);
            let rows = values.chunks_exact(vectors).zip(next);
            for ((values, next), pair) in rows.zip(block_pair..PARTITION / 2) {
                s.prefetch(&next[0]);
                if C == 4 {
                    s.prefetch(&next[2]);
                }
                let values = &values[first..first + C];
                let mut wide = [s.load_pairs(&values[0]); C];
                for (wide, values) in wide.iter_mut().zip(values) {
                    *wide = s.load_pairs(values);
                }
                for (held, weights) in held.iter_mut().zip(weights) {
                    for (held, &value) in held.iter_mut().zip(&wide) {
                        *held = s.dot_pairs(value, weights[pair], *held);
                    }
                }
            }
        }
        for (held, sums) in held.iter().zip(sums.chunks_exact_mut(vectors)) {
            sums[first..first + C].copy_from_slice(held);
        }
    }
}
