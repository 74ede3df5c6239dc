//! The gated activations of feed-forward layers, softmax, and the greatest element.
//!
//! Called by the worker's forward pass and sampler. Each element depends on its own inputs only, except in
//! [`softmax_in_place`], whose sum takes element i into partial sum i mod 16 and adds those as a tree.

use super::math::{self, Kernel, LANES, Simd};
use super::norm::ELEMENTS_PER_CHUNK;
use super::shape::expect_len;
use super::{Cpu, DisjointMut};
use crate::KernelError;

/// The function applied to the gate of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// x / (1 + e^−x), also called swish.
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// `out[i] = f(gate[i]) · up[i]` with f = `kind`. Shapes: all [n], f32.
///
/// f is within 1e-6 of its exact value, relative to max(|x|, tiny); not-a-number stays so.
/// Source: Shazeer 2020 (GLU variants), Hendrycks & Gimpel 2016 (GELU).
pub fn gated_activation(
    cpu: &Cpu,
    kind: Gate,
    gate: &[f32],
    up: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    expect_len("up projection", up.len(), gate.len())?;
    expect_len("gated activation output", out.len(), gate.len())?;
    let shared = DisjointMut::new(out);
    cpu.for_each_chunk(gate.len(), ELEMENTS_PER_CHUNK, &|range| {
        // SAFETY: the chunks of one region are disjoint.
        let out = unsafe { shared.slice(range.clone()) };
        cpu.launch(Gated { kind, gate: &gate[range.clone()], up: &up[range], out });
    });
    Ok(())
}

/// [`gated_activation`] with [`Gate::Silu`].
pub fn gated_silu(cpu: &Cpu, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    gated_activation(cpu, Gate::Silu, gate, up, out)
}

struct Gated<'a> {
    kind: Gate,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.kind {
            Gate::Silu => self.each::<S, Silu>(s),
            Gate::GeluTanh => self.each::<S, GeluTanh>(s),
            Gate::GeluErf => self.each::<S, GeluErf>(s),
        }
    }
}

impl Gated<'_> {
    #[inline(always)]
    fn each<S: Simd, C: Curve>(self, s: S) {
        let (gates, gate_tail) = self.gate.as_chunks::<LANES>();
        let (ups, up_tail) = self.up.as_chunks::<LANES>();
        let (outs, out_tail) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            s.store(s.mul(C::at(s, s.load(gate)), s.load(up)), out);
        }
        s.store_part(s.mul(C::at(s, s.load_part(gate_tail)), s.load_part(up_tail)), out_tail);
    }
}

/// A function of one variable. A type rather than a closure, which would not be inlined (see `math`).
trait Curve {
    fn at<S: Simd>(s: S, x: S::F) -> S::F;
}

struct Silu;
struct GeluTanh;
struct GeluErf;

/// x · sigmoid(slope)
#[inline(always)]
fn sigmoid_times<S: Simd>(s: S, x: S::F, slope: S::F) -> S::F {
    let fallen = math::exp(s, s.sub(s.splat(0.0), slope));
    s.div(x, s.add(s.splat(1.0), fallen))
}

impl Curve for Silu {
    #[inline(always)]
    fn at<S: Simd>(s: S, x: S::F) -> S::F {
        sigmoid_times(s, x, x)
    }
}

impl Curve for GeluTanh {
    /// ½ x (1 + tanh u) = x · sigmoid(2u) with u = √(2/π) (x + 0.044715 x³).
    #[inline(always)]
    fn at<S: Simd>(s: S, x: S::F) -> S::F {
        const TWICE_ROOT: f32 = 1.595_769;
        let cubic = s.fma(s.mul(s.splat(0.044_715), s.mul(x, x)), x, x);
        sigmoid_times(s, x, s.mul(s.splat(TWICE_ROOT), cubic))
    }
}

impl Curve for GeluErf {
    #[inline(always)]
    fn at<S: Simd>(s: S, x: S::F) -> S::F {
        let half = s.mul(s.splat(0.5), x);
        s.fma(half, math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
    }
}

/// The index and value of the greatest element, the first of equals; not-a-numbers are passed over. `None` if
/// no element is a number.
#[must_use]
pub fn argmax(cpu: &Cpu, x: &[f32]) -> Option<(usize, f32)> {
    let highest = cpu.launch(Highest { x });
    x.iter().position(|&value| value == highest).map(|index| (index, x[index]))
}

struct Highest<'a> {
    x: &'a [f32],
}

impl Kernel for Highest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (vectors, tail) = self.x.as_chunks::<LANES>();
        let mut highest = s.splat(f32::NEG_INFINITY);
        for x in vectors {
            // The second operand wins against a NaN.
            highest = s.max(s.load(x), highest);
        }
        tail.iter().fold(s.highest(highest), |a, &b| if b > a { b } else { a })
    }
}

/// Replaces `x` by e^(x − max) / Σ e^(x − max). Shape: [n], f32; −∞ becomes 0. On the calling thread.
///
/// An `x` holding ∞ or not-a-number, or only −∞, becomes not-a-numbers.
pub fn softmax_in_place(cpu: &Cpu, x: &mut [f32]) {
    cpu.launch(Softmax { x });
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let highest = s.splat(Highest { x: self.x }.run(s));
        let (vectors, tail) = self.x.as_chunks_mut::<LANES>();
        let mut sums = s.splat(0.0);
        for x in vectors.iter_mut() {
            let power = math::exp(s, s.sub(s.load(x), highest));
            sums = s.add(sums, power);
            s.store(power, x);
        }
        // Lanes past the tail must add nothing: e^(−∞) is zero.
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..tail.len()].copy_from_slice(tail);
        let power = math::exp(s, s.sub(s.load(&last), highest));
        sums = s.add(sums, power);
        let total = s.splat(s.sum(sums));
        s.store_part(s.div(power, total), tail);
        for x in vectors {
            s.store(s.div(s.load(x), total), x);
        }
    }
}
