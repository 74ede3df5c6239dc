//! Rotary position embedding.
//!
//! The worker computes one [`RopeTable`] per batch and applies it to queries and keys of every layer. Angles are
//! computed in f64, so they are exact to the last f32 place at any position; frequency scaling (linear,
//! Llama 3, YaRN) is the worker's business and arrives as `inv_freq` and `magnitude`.

use super::math::{Kernel, LANES, Simd};
use super::shape::{expect_len, rows_of};
use super::{Cpu, DisjointMut};
use crate::KernelError;

/// Which elements of a head form a pair to be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// 2i and 2i + 1: Llama and Mistral as GGUF stores them ("norm").
    Adjacent,
    /// i and i + rope_dims/2: Qwen, Gemma, Phi and others ("NeoX").
    Halves,
}

/// Cosines and sines for each row of a batch.
#[derive(Debug, Clone)]
pub struct RopeTable {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// The rotations of rows at `positions` (one per row), by the angle position · `inv_freq[i]` for pair i,
    /// times `magnitude` (1 but for YaRN). Shapes: `positions` [rows], `inv_freq` [rope_dims / 2].
    #[must_use]
    pub fn compute(positions: &[u32], inv_freq: &[f32], magnitude: f32) -> RopeTable {
        let pairs = inv_freq.len();
        let mut cos = Vec::with_capacity(positions.len() * pairs);
        let mut sin = Vec::with_capacity(positions.len() * pairs);
        for &position in positions {
            for &frequency in inv_freq {
                let (sine, cosine) = (f64::from(position) * f64::from(frequency)).sin_cos();
                cos.push((cosine * f64::from(magnitude)) as f32);
                sin.push((sine * f64::from(magnitude)) as f32);
            }
        }
        RopeTable { pairs, cos, sin }
    }

    /// Rows it was computed for.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.cos.len().checked_div(self.pairs).unwrap_or(0)
    }

    fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let range = row * self.pairs..(row + 1) * self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// How the heads of a row are laid out for [`rope_in_place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeShape {
    /// Heads in a row.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Leading elements of each head that are rotated, twice the pairs of the table; the others stay.
    pub rope_dims: usize,
    /// Which elements form a pair.
    pub pairing: RopePairing,
}

/// Rotates each pair (a, b) of each head to (a cos − b sin, b cos + a sin) with its row's angles.
///
/// Shape: `x` [rows, heads · head_dim], f32, row-major; `table` of as many rows and rope_dims / 2 pairs.
/// Source: Su et al. 2021 (RoFormer).
pub fn rope_in_place(
    cpu: &Cpu,
    x: &mut [f32],
    shape: RopeShape,
    table: &RopeTable,
) -> Result<(), KernelError> {
    let RopeShape { heads, head_dim, rope_dims, .. } = shape;
    let width = heads.saturating_mul(head_dim);
    let rows = rows_of("rope input", x.len(), width)?;
    expect_len("rope dimensions", rope_dims, 2 * table.pairs)?;
    if rope_dims > head_dim {
        let (value, limit) = (rope_dims, head_dim + 1);
        return Err(KernelError::OutOfRange { what: "rope dimensions", value, limit });
    }
    if rope_dims == 0 {
        return Ok(());
    }
    expect_len("rope table rows", table.rows(), rows)?;
    let shared = DisjointMut::new(x);
    // A row is a few microseconds of work, so several go together once there are many.
    cpu.for_each_chunk(rows, rows.div_ceil(16 * cpu.threads()), &|rows| {
        for row in rows {
            // SAFETY: the chunks of one region are disjoint, and so are their rows.
            let x = unsafe { shared.slice(row * width..(row + 1) * width) };
            let (cos, sin) = table.row(row);
            cpu.launch(Rotate { x, shape, cos, sin });
        }
    });
    Ok(())
}

struct Rotate<'a> {
    x: &'a mut [f32],
    shape: RopeShape,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for head in self.x.chunks_exact_mut(self.shape.head_dim) {
            let rotated = &mut head[..self.shape.rope_dims];
            match self.shape.pairing {
                RopePairing::Adjacent => rotate_adjacent(rotated, self.cos, self.sin),
                RopePairing::Halves => rotate_halves(s, rotated, self.cos, self.sin),
            }
        }
    }
}

/// One pair; every path computes it with exactly these roundings.
#[inline(always)]
fn rotate(a: f32, b: f32, cos: f32, sin: f32) -> (f32, f32) {
    (b.mul_add(-sin, a * cos), a.mul_add(sin, b * cos))
}

#[inline(always)]
fn rotate_adjacent(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, &cos), &sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        let (a, b) = rotate(pair[0], pair[1], cos, sin);
        *pair = [a, b];
    }
}

#[inline(always)]
fn rotate_halves<S: Simd>(s: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(cos.len());
    let (lows, low_tail) = low.as_chunks_mut::<LANES>();
    let (highs, high_tail) = high.as_chunks_mut::<LANES>();
    let (cosines, cos_tail) = cos.as_chunks::<LANES>();
    let (sines, sin_tail) = sin.as_chunks::<LANES>();
    for (((low, high), cos), sin) in lows.iter_mut().zip(highs).zip(cosines).zip(sines) {
        let (a, b, cos, sin) = (s.load(low), s.load(high), s.load(cos), s.load(sin));
        s.store(s.fma(b, s.mul(s.splat(-1.0), sin), s.mul(a, cos)), low);
        s.store(s.fma(a, sin, s.mul(b, cos)), high);
    }
    for (((low, high), &cos), &sin) in low_tail.iter_mut().zip(high_tail).zip(cos_tail).zip(sin_tail) {
        (*low, *high) = rotate(*low, *high, cos, sin);
    }
}
