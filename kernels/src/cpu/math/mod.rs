//! Vectors of sixteen f32 (and a few operations on integers), so that each kernel is written once and compiled for every instruction set.
//!
//! A kernel is a struct of its arguments implementing [`Kernel`]; [`Cpu::launch`] runs it with the vector type of
//! the chosen instruction set, inside a function that enables those instructions. What always holds: each
//! operation here gives the same bits on every instruction set (only the sign and payload of a NaN may
//! differ), so a kernel that fixes its order of operations does too. Everything on the way from a kernel to a
//! vector operation must be `#[inline(always)]`; a closure or a function passed as an argument is not, and would
//! turn each operation into a call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod exp;
mod portable;
#[cfg(test)]
mod tests;

pub(crate) use exp::{erf, exp, tanh};
pub(crate) use portable::Portable;

use super::{Cpu, Isa};

/// Elements of a vector.
pub(crate) const LANES: usize = 16;

/// An instruction set seen as operations on sixteen f32. A value of the type proves that it is present.
pub(crate) trait Simd: Copy {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;
    /// Sixteen pairs of i16.
    type Pairs: Copy;
    /// Whether 24 vectors fit into registers at once (else about 6).
    const WIDE: bool;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F;
    /// Lane i is `from[i]`.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// `to[i]` becomes lane i.
    fn store(self, value: Self::F, to: &mut [f32; LANES]);
    /// Exact widening of IEEE half floats.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// Exact widening of bfloat16.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// Narrowing to IEEE half floats, to nearest, ties to even.
    fn store_f16(self, value: Self::F, to: &mut [u16; LANES]);
    /// a + b
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The greater, or `b` where either is not a number.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller, or `b` where either is not a number.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, value: Self::F) -> Self::F;
    /// value · 2^power, rounded once, for integral powers in −252..=252 and |value| in 0.5..=2.
    fn scale_by_power(self, value: Self::F, power: Self::F) -> Self::F;
    /// `yes` where a < b, else `no`.
    fn select_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;
    /// The lanes added as a tree: i with i + 8, then i + 4, i + 2, i + 1.
    fn sum(self, value: Self::F) -> f32;
    /// The greatest lane by the same tree of [`Simd::max`].
    fn highest(self, value: Self::F) -> f32;

    /// Sixteen integers 0.
    fn zero_integers(self) -> Self::I;
    /// Exact widening of pairs of bytes.
    fn load_pairs(self, from: &[[i8; 2]; LANES]) -> Self::Pairs;
    /// sum + a · b of both halves of each pair; the caller knows that it does not overflow.
    fn dot_pairs(self, a: Self::Pairs, b: [i16; 2], sum: Self::I) -> Self::I;
    /// To f32, to nearest, ties to even.
    fn floats(self, integers: Self::I) -> Self::F;
    /// `to[i]` becomes lane i rounded to nearest, ties to even; all lanes within ±32767.
    fn store_i16(self, value: Self::F, to: &mut [i16; LANES]);

    /// Asks for the cache line of `_at`, where the processor takes such advice.
    #[inline(always)]
    fn prefetch<T>(self, _at: &T) {}

    /// Up to sixteen elements, the other lanes zero.
    #[inline(always)]
    fn load_part(self, from: &[f32]) -> Self::F {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// The first lanes, as many as `to` has elements (at most sixteen).
    #[inline(always)]
    fn store_part(self, value: Self::F, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(value, &mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
}

/// Two integers of 16 bits as one of 32, the first in the low half as little-endian memory has them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn as_lane([low, high]: [i16; 2]) -> i32 {
    i32::from(high) << 16 | i32::from(low as u16)
}

/// A computation written over [`Simd`]. `run` must be `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;
    /// Computes with the vectors of `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Cpu {
    /// Runs `kernel` on this thread with the instruction set of the context.
    #[inline]
    pub(crate) fn launch<K: Kernel>(&self, kernel: K) -> K::Output {
        match self.isa() {
            Isa::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Cpu::new` checked that the processor has all that `Isa::Avx2` needs.
            Isa::Avx2 => unsafe { avx2::launch(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Cpu::new` checked that the processor has all that `Isa::Avx512` needs.
            Isa::Avx512 | Isa::Amx => unsafe { avx512::launch(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Amx => kernel.run(Portable),
        }
    }
}
