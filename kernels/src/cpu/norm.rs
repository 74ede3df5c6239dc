//! Root-mean-square normalization and the residual addition.
//!
//! Called by the worker's forward pass on the residual stream and, per head, on queries and keys. The sum of
//! squares of a row is taken in one fixed order: element i goes to partial sum i mod 64 by fused multiply-add;
//! the four vectors of partial sums are added as (0 + 1) + (2 + 3), then the lanes as a tree.

use std::ops::Range;

use super::math::{Kernel, LANES, Simd};
use super::shape::{expect_len, rows_of};
use super::{Cpu, DisjointMut};
use crate::KernelError;

/// Elements a thread takes at once in element-wise operations: 16 KiB of f32.
pub(crate) const ELEMENTS_PER_CHUNK: usize = 4096;

/// Scales each row of `x` to unit root mean square (with `eps` added to the mean square), then multiplies it
/// by `gain`, into `out`.
///
/// Shapes: `x` and `out` [rows, dim], `gain` [dim]; f32, row-major. Errors: [`KernelError`] where lengths do
/// not fit. Source: Zhang & Sennrich 2019 (RMSNorm).
pub fn rms_norm(cpu: &Cpu, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) -> Result<(), KernelError> {
    let dim = gain.len();
    let rows = rows_of("rms_norm input", x.len(), dim)?;
    expect_len("rms_norm output", out.len(), x.len())?;
    let shared = DisjointMut::new(out);
    cpu.for_each_chunk(rows, rows_per_chunk(dim), &|rows| {
        let elements = rows.start * dim..rows.end * dim;
        // SAFETY: the chunks of one region are disjoint.
        let out = unsafe { shared.slice(elements.clone()) };
        out.copy_from_slice(&x[elements]);
        cpu.launch(Norm { rows: out, gain, eps });
    });
    Ok(())
}

/// [`rms_norm`] of each row of `x` in its place; with `gain` [head_dim] and `x` [rows · heads, head_dim] it is
/// the per-head norm of queries and keys.
pub fn rms_norm_in_place(cpu: &Cpu, x: &mut [f32], gain: &[f32], eps: f32) -> Result<(), KernelError> {
    let dim = gain.len();
    let rows = rows_of("rms_norm input", x.len(), dim)?;
    let shared = DisjointMut::new(x);
    cpu.for_each_chunk(rows, rows_per_chunk(dim), &|rows| {
        // SAFETY: the chunks of one region are disjoint.
        let rows = unsafe { shared.slice(rows.start * dim..rows.end * dim) };
        cpu.launch(Norm { rows, gain, eps });
    });
    Ok(())
}

/// `x[i] += addend[i]`. Shapes: both [n], f32.
pub fn add_in_place(cpu: &Cpu, x: &mut [f32], addend: &[f32]) -> Result<(), KernelError> {
    expect_len("addend", addend.len(), x.len())?;
    let shared = DisjointMut::new(x);
    cpu.for_each_chunk(addend.len(), ELEMENTS_PER_CHUNK, &|range: Range<usize>| {
        // SAFETY: the chunks of one region are disjoint.
        let x = unsafe { shared.slice(range.clone()) };
        cpu.launch(Add { x, addend: &addend[range] });
    });
    Ok(())
}

/// `x[r][i] += bias[i]` for each row r. Shapes: `x` [rows, dim], `bias` [dim]; f32, row-major.
pub fn add_bias_in_place(cpu: &Cpu, x: &mut [f32], bias: &[f32]) -> Result<(), KernelError> {
    let dim = bias.len();
    let rows = rows_of("bias target", x.len(), dim)?;
    let shared = DisjointMut::new(x);
    cpu.for_each_chunk(rows, rows_per_chunk(dim), &|rows| {
        for row in rows {
            // SAFETY: the chunks of one region are disjoint, and so are their rows.
            let x = unsafe { shared.slice(row * dim..(row + 1) * dim) };
            cpu.launch(Add { x, addend: bias });
        }
    });
    Ok(())
}

fn rows_per_chunk(dim: usize) -> usize {
    ELEMENTS_PER_CHUNK.div_ceil(dim.max(1))
}

struct Norm<'a> {
    rows: &'a mut [f32],
    gain: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let dim = self.gain.len();
        for row in self.rows.chunks_exact_mut(dim) {
            let mean = sum_of_squares(s, row) / dim as f32;
            let scale = s.splat(1.0 / (mean + self.eps).sqrt());
            let (vectors, tail) = row.as_chunks_mut::<LANES>();
            let (gains, gain_tail) = self.gain.as_chunks::<LANES>();
            for (x, gain) in vectors.iter_mut().zip(gains) {
                s.store(s.mul(s.mul(s.load(x), scale), s.load(gain)), x);
            }
            s.store_part(s.mul(s.mul(s.load_part(tail), scale), s.load_part(gain_tail)), tail);
        }
    }
}

#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, row: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let (fours, rest) = row.as_chunks::<{ 4 * LANES }>();
    for four in fours {
        for (sum, x) in sums.iter_mut().zip(four.as_chunks::<LANES>().0) {
            let x = s.load(x);
            *sum = s.fma(x, x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(LANES)) {
        let x = s.load_part(x);
        *sum = s.fma(x, x, *sum);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

struct Add<'a> {
    x: &'a mut [f32],
    addend: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (vectors, tail) = self.x.as_chunks_mut::<LANES>();
        let (addends, addend_tail) = self.addend.as_chunks::<LANES>();
        for (x, addend) in vectors.iter_mut().zip(addends) {
            s.store(s.add(s.load(x), s.load(addend)), x);
        }
        for (x, addend) in tail.iter_mut().zip(addend_tail) {
            *x += addend;
        }
    }
}
