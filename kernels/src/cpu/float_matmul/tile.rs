//! The register tiles of the float product: some row groups by some tokens, one block of columns at a time.

use std::ops::Range;

use bytemuck::Pod;

use super::super::DisjointMut;
use super::super::math::{Kernel, LANES, Simd};
use super::COLUMNS_PER_BLOCK;

/// A stored weight type: how sixteen of them become f32.
pub(super) trait Weight {
    /// The type in memory.
    type Stored: Pod + Send + Sync;
    /// Sixteen weights, widened exactly.
    fn widen<S: Simd>(s: S, from: &[Self::Stored; LANES]) -> S::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Weight for F32 {
    type Stored = f32;

    #[inline(always)]
    fn widen<S: Simd>(s: S, from: &[f32; LANES]) -> S::F {
        s.load(from)
    }
}

impl Weight for F16 {
    type Stored = u16;

    #[inline(always)]
    fn widen<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_f16(from)
    }
}

impl Weight for Bf16 {
    type Stored = u16;

    #[inline(always)]
    fn widen<S: Simd>(s: S, from: &[u16; LANES]) -> S::F {
        s.load_bf16(from)
    }
}

/// All tokens times some neighbouring row groups.
pub(super) struct Multiply<'a, W: Weight> {
    /// `[group][column]` of sixteen rows.
    pub(super) weights: &'a [[W::Stored; LANES]],
    /// [tokens, cols]
    pub(super) x: &'a [f32],
    pub(super) cols: usize,
    /// First output row of the first group.
    pub(super) first_row: usize,
    /// Output rows of the whole matrix.
    pub(super) rows: usize,
    /// [tokens, rows]; the columns of these groups belong to this call.
    pub(super) out: &'a DisjointMut<'a, f32>,
}

impl<W: Weight> Kernel for Multiply<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = self.weights.len() / self.cols;
        let tokens = self.x.len() / self.cols;
        for start in (0..self.cols).step_by(COLUMNS_PER_BLOCK) {
            let columns = start..self.cols.min(start + COLUMNS_PER_BLOCK);
            let mut group = 0;
            while group < groups {
                let left = groups - group;
                if left >= 4 && tokens < 8 {
                    self.all_tokens::<S, 4>(s, group, &columns);
                    group += 4;
                } else if left >= 2 {
                    self.all_tokens::<S, 2>(s, group, &columns);
                    group += 2;
                } else {
                    self.all_tokens::<S, 1>(s, group, &columns);
                    group += 1;
                }
            }
        }
    }
}

impl<W: Weight> Multiply<'_, W> {
    /// G row groups by every token, as many tokens at a time as the registers hold.
    #[inline(always)]
    fn all_tokens<S: Simd, const G: usize>(&self, s: S, group: usize, columns: &Range<usize>) {
        let tokens = self.x.len() / self.cols;
        let most = if S::WIDE { 16 / G } else { 4 / G };
        let mut token = 0;
        while token < tokens {
            let left = (tokens - token).min(most);
            let together = match left {
                8.. => self.tile::<S, G, 8>(s, group, token, columns),
                4.. => self.tile::<S, G, 4>(s, group, token, columns),
                2.. => self.tile::<S, G, 2>(s, group, token, columns),
                _ => self.tile::<S, G, 1>(s, group, token, columns),
            };
            token += together;
        }
    }

    /// G row groups by T tokens over one block of columns. Returns T.
    #[inline(always)]
    fn tile<S: Simd, const G: usize, const T: usize>(
        &self,
        s: S,
        group: usize,
        token: usize,
        columns: &Range<usize>,
    ) -> usize {
        let of = |row: usize| row * self.cols + columns.start..row * self.cols + columns.end;
        let weights: [&[[W::Stored; LANES]]; G] = std::array::from_fn(|g| &self.weights[of(group + g)]);
        let x: [&[f32]; T] = std::array::from_fn(|t| &self.x[of(token + t)]);
        let mut sums = [[s.splat(0.0); G]; T];
        for column in 0..columns.len() {
            // SAFETY: every slice has `columns.len()` elements.
            let w: [S::F; G] = weights.map(|w| W::widen(s, unsafe { w.get_unchecked(column) }));
            for (x, sums) in x.iter().zip(&mut sums) {
                // SAFETY: every slice has `columns.len()` elements.
                let x = s.splat(unsafe { *x.get_unchecked(column) });
                for (sum, &w) in sums.iter_mut().zip(&w) {
                    *sum = s.fma(w, x, *sum);
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (g, &sum) in sums.iter().enumerate() {
                let row = self.first_row + (group + g) * LANES;
                let start = (token + t) * self.rows;
                // SAFETY: these columns of the output belong to this call, and no other slice is alive.
                let out = unsafe { self.out.slice(start + row..start + self.rows.min(row + LANES)) };
                add_block(s, sum, out, columns.start == 0);
            }
        }
        T
    }
}

/// Stores the first block sum of up to sixteen outputs, or adds a later one.
#[inline(always)]
fn add_block<S: Simd>(s: S, sum: S::F, out: &mut [f32], first: bool) {
    match out.first_chunk_mut::<LANES>() {
        Some(out) if first => s.store(sum, out),
        Some(out) => s.store(s.add(s.load(out), sum), out),
        None if first => s.store_part(sum, out),
        None => s.store_part(s.add(s.load_part(out), sum), out),
    }
}
