//! The register tiles of the float product: some row groups by some tokens, one block of columns at a time.

use bytemuck::Pod;

use super::super::math::{Kernel, LANES, Simd};
use super::COLUMNS_PER_BLOCK as BLOCK;

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
    /// Out: [tokens, groups] of sixteen rows.
    pub(super) out: &'a mut [[f32; LANES]],
}

impl<W: Weight> Kernel for Multiply<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let groups = self.weights.len() / self.cols;
        let tokens = self.x.len() / self.cols;
        self.out.fill([0.0; LANES]);
        let mut start = 0;
        while start < self.cols {
            let blocks = if tokens == 1 && groups < 4 && self.cols - start >= 4 * BLOCK { 4 } else { 1 };
            let mut group = 0;
            while group < groups {
                let left = groups - group;
                group += match (blocks, left) {
                    (4, _) => self.tile::<S, 1, 1, 4>(s, (group, 0), start),
                    (_, 4..) if tokens < 8 => self.all_tokens::<S, 4>(s, group, start),
                    (_, 2..) => self.all_tokens::<S, 2>(s, group, start),
                    _ => self.all_tokens::<S, 1>(s, group, start),
                };
            }
            start += blocks * BLOCK;
        }
    }
}

impl<W: Weight> Multiply<'_, W> {
    /// G row groups by every token, as many tokens at a time as the registers hold. Returns G.
    #[inline(always)]
    fn all_tokens<S: Simd, const G: usize>(&mut self, s: S, group: usize, start: usize) -> usize {
        let tokens = self.x.len() / self.cols;
        let most = if S::WIDE { 16 / G } else { 4 / G };
        let mut token = 0;
        while token < tokens {
            let at = (group, token);
            match (tokens - token).min(most) {
                8.. => self.tile::<S, G, 8, 1>(s, at, start),
                4.. => self.tile::<S, G, 4, 1>(s, at, start),
                2.. => self.tile::<S, G, 2, 1>(s, at, start),
                _ => self.tile::<S, G, 1, 1>(s, at, start),
            };
            token += match (tokens - token).min(most) {
                8.. => 8,
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
        }
        G
    }

    /// G row groups by T tokens over B blocks of columns from `start`, the last block perhaps short. Returns G.
    #[inline(always)]
    fn tile<S: Simd, const G: usize, const T: usize, const B: usize>(
        &mut self,
        s: S,
        (group, token): (usize, usize),
        start: usize,
    ) -> usize {
        let (cols, groups) = (self.cols, self.weights.len() / self.cols);
        let len = (cols - start).min(BLOCK);
        let last = start + (B - 1) * BLOCK + len;
        let weights = &self.weights[group * cols..(group + G - 1) * cols + last];
        let x = &self.x[token * cols..(token + T - 1) * cols + last];
        let mut sums = [[[s.splat(0.0); G]; T]; B];
        for column in start..start + len {
            for (b, sums) in sums.iter_mut().enumerate() {
                let column = column + b * BLOCK;
                let mut w = [s.splat(0.0); G];
                for (g, w) in w.iter_mut().enumerate() {
                    // SAFETY: g < G and column < last, so this is inside `weights` as cut above.
                    *w = W::widen(s, unsafe { weights.get_unchecked(g * cols + column) });
                }
                for (t, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: t < T and column < last, so this is inside `x` as cut above.
                    let x = s.splat(unsafe { *x.get_unchecked(t * cols + column) });
                    for (sum, &w) in sums.iter_mut().zip(&w) {
                        *sum = s.fma(w, x, *sum);
                    }
                }
            }
        }
        for sums in &sums {
            for (t, sums) in sums.iter().enumerate() {
                let out = &mut self.out[(token + t) * groups + group..][..G];
                for (out, &sum) in out.iter_mut().zip(sums) {
                    s.store(s.add(s.load(out), sum), out);
                }
            }
        }
        G
    }
}
