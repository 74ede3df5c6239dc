//! The product of 16 weight rows with a few token rows: the one place that fixes the order of f32 operations.
//!
//! Every output is one lane's own chain. For each block in column order, with `dot` the exact integer sum:
//! - one scale: `acc = fma(w.scale * x.scale, f32(sum((code - offset) * x)), acc)`;
//! - scale and minimum: `acc = fma(w.scale * x.scale, f32(sum(code * x)), acc)`, then
//!   `acc = fma(w.min, x.scaled_sum, acc)`;
//! - Q4_K, Q5_K: `acc = fma(w.scale * x.scale, f32(sum(sub_scale * sum(code * x))), acc)`, then
//!   `acc = fma(-(w.min * x.scale), f32(sum(sub_min * sum(x))), acc)`;
//! - Q6_K: `acc = fma(w.scale * x.scale, f32(sum(sub_scale * sum((code - 32) * x))), acc)`.
//!
//! Nothing else touches the sum, so its bits depend on the weight row and the token row alone (promise P3).
//! No integer overflows: the largest is Q6_K's 16 * 128 * (16 * 32 * 127) = 133 million.

use super::activations::{Block32, Block256};
use super::lanes::Lanes;
use super::output::Columns;
use super::portable::Portable;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use crate::cpu::matrix::formats::Format;
use crate::cpu::matrix::layout::{Codes, Halves, ScaleHead, ScaleMinHead, SubMinHead, SubScaleHead};
use crate::cpu::{Cpu, Isa};

/// Token rows in the widest tile: the rows of an AMX tile.
pub(crate) const TILE_TOKENS: usize = 16;

/// The weights of one group of 16 rows, a pair of entries per block.
pub(crate) struct Group<'a, F: Format> {
    pub(crate) codes: &'a [F::Codes],
    pub(crate) heads: &'a [F::Head],
}

/// Multiplies `group` with `tokens` token rows, whose blocks lie in tiles (see `activations`), into `out`.
pub(crate) fn multiply<F: Format>(
    cpu: &Cpu,
    group: &Group<'_, F>,
    x: &[F::Activation],
    tokens: usize,
    out: &Columns<'_>,
) {
    debug_assert_eq!(x.len(), group.heads.len() * tokens);
    match cpu.isa() {
        // SAFETY: an `Isa` inside a `Cpu` is present on this processor.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { multiply_avx512(group, x, tokens, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { multiply_avx2(group, x, tokens, out) },
        _ => multiply_with(Portable, group, x, tokens, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply_avx512<F: Format>(group: &Group<'_, F>, x: &[F::Activation], tokens: usize, out: &Columns<'_>) {
    // SAFETY: this function runs only where its features are.
    multiply_with(unsafe { Avx512::assume() }, group, x, tokens, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_avx2<F: Format>(group: &Group<'_, F>, x: &[F::Activation], tokens: usize, out: &Columns<'_>) {
    // SAFETY: this function runs only where its features are.
    multiply_with(unsafe { Avx2::assume() }, group, x, tokens, out);
}

/// Walks the tiles in strips of as many token rows as the registers hold, narrower ones at the end of the last.
#[inline(always)]
fn multiply_with<L: Lanes, F: Format>(
    lanes: L,
    group: &Group<'_, F>,
    x: &[F::Activation],
    tokens: usize,
    out: &Columns<'_>,
) {
    let mut token = 0;
    while token < tokens {
        let tile = token - token % TILE_TOKENS;
        let width = TILE_TOKENS.min(tokens - tile);
        let strip = Strip { x: &x[tile * group.heads.len() + token % TILE_TOKENS..], width, token };
        token += match tile + width - token {
            8.. if L::TOKENS >= 8 => multiply_strip::<L, F, 8>(lanes, group, &strip, out),
            4.. if L::TOKENS >= 4 => multiply_strip::<L, F, 4>(lanes, group, &strip, out),
            2.. if L::TOKENS >= 2 => multiply_strip::<L, F, 2>(lanes, group, &strip, out),
            _ => multiply_strip::<L, F, 1>(lanes, group, &strip, out),
        };
    }
}

/// Some neighbouring token rows of a tile.
struct Strip<'a, A> {
    /// From the first one's first block on.
    x: &'a [A],
    /// Token rows of the tile: the blocks from one column of blocks to the next.
    width: usize,
    /// The first one's place in the panel.
    token: usize,
}

/// Multiplies `T` token rows and returns `T`.
#[inline(always)]
fn multiply_strip<L: Lanes, F: Format, const T: usize>(
    lanes: L,
    group: &Group<'_, F>,
    strip: &Strip<'_, F::Activation>,
    out: &Columns<'_>,
) -> usize {
    let mut acc = [lanes.splat(0.0); T];
    let mut x = strip.x;
    for (codes, head) in group.codes.iter().zip(group.heads) {
        let Some(blocks) = x.first_chunk::<T>() else { break };
        F::accumulate(lanes, codes, head, blocks, &mut acc);
        x = x.get(strip.width..).unwrap_or_default();
    }
    for (t, acc) in acc.into_iter().enumerate() {
        out.put(lanes, strip.token + t, acc);
    }
    T
}

/// Runs the body for each quad of a step, with the quad as a constant; what the layout does with it folds away.
macro_rules! for_each_quad {
    ($($quad:literal)+, $j:ident => $body:block) => {
        $({ const $j: usize = $quad; $body })+
    };
}

/// Asks for codes ahead where the arithmetic on a step outlasts the processor's own look-ahead. Measured on Zen 4:
/// a fifth faster from 4 token rows on, a tenth slower below for Q4_K, and with one token row for Q6_K.
#[inline(always)]
fn prefetch<L: Lanes, C: Codes, const T: usize>(lanes: L, codes: &C) {
    if T >= 4 {
        codes.prefetch(lanes);
    }
}

/// Keeps the products of different token rows alternating, as they are written. Left alone the compiler orders them
/// such that few sums are under way at a time, and the processor waits for them.
#[inline(always)]
fn keep_order<L: Lanes, const T: usize>(lanes: L, dot: &mut [L::I32; T]) {
    if T > 2 {
        for dot in dot {
            *dot = lanes.in_order(*dot);
        }
    }
}

/// One scale per 32. The offset is a power of two; it comes in through the exact sum of the activations.
#[inline(always)]
pub(crate) fn accumulate_scaled<L: Lanes, C: Codes, const OFFSET: i32, const T: usize>(
    lanes: L,
    codes: &C,
    head: &ScaleHead,
    x: &[Block32; T],
    acc: &mut [L::F32; T],
) {
    let mut dot = [lanes.splat_i32(0); T];
    for t in 0..T {
        dot[t] = lanes.splat_i32(x[t].negative_sum * OFFSET);
    }
    dot_step(lanes, codes, x, &mut dot);
    add_scaled(lanes, head, x, &dot, acc);
}

/// One scale per 32 and codes around 128, which not every instruction set multiplies as they are.
#[inline(always)]
pub(crate) fn accumulate_scaled_around_128<L: Lanes, C: Codes, const T: usize>(
    lanes: L,
    codes: &C,
    head: &ScaleHead,
    x: &[Block32; T],
    acc: &mut [L::F32; T],
) {
    let mut dot = [lanes.splat_i32(0); T];
    for t in 0..T {
        dot[t] = lanes.start_around_128(x[t].negative_sum);
    }
    prefetch::<L, C, T>(lanes, codes);
    for_each_quad!(0 1 2 3 4 5 6 7, J => {
        let quad = codes.quad::<L, J>(lanes);
        for t in 0..T {
            dot[t] = lanes.dot4_around_128(dot[t], quad, x[t].codes[J]);
        }
        keep_order(lanes, &mut dot);
    });
    add_scaled(lanes, head, x, &dot, acc);
}

/// A scale and a minimum per 32.
#[inline(always)]
pub(crate) fn accumulate_with_min<L: Lanes, C: Codes, const T: usize>(
    lanes: L,
    codes: &C,
    head: &ScaleMinHead,
    x: &[Block32; T],
    acc: &mut [L::F32; T],
) {
    let mut dot = [lanes.splat_i32(0); T];
    dot_step(lanes, codes, x, &mut dot);
    add_with_min(lanes, head, x, &dot, acc);
}

#[inline(always)]
fn dot_step<L: Lanes, C: Codes, const T: usize>(
    lanes: L,
    codes: &C,
    x: &[Block32; T],
    dot: &mut [L::I32; T],
) {
    if T == 1 {
        // Measured on Zen 4: a sixth faster on one core, a twentieth on all of them.
        codes.prefetch_once(lanes);
    }
    prefetch::<L, C, T>(lanes, codes);
    for_each_quad!(0 1 2 3 4 5 6 7, J => {
        let quad = codes.quad::<L, J>(lanes);
        for t in 0..T {
            dot[t] = lanes.dot4(dot[t], quad, x[t].codes[J]);
        }
        keep_order(lanes, dot);
    });
}

/// Integer scales and minimums per 32 under one scale and one minimum per 256.
#[inline(always)]
pub(crate) fn accumulate_sub_min<L: Lanes, C: Codes, const T: usize>(
    lanes: L,
    codes: &[C; 8],
    head: &SubMinHead,
    x: &[Block256; T],
    acc: &mut [L::F32; T],
) {
    let mut sum = [lanes.splat_i32(0); T];
    for (j, (codes, sub_scale)) in codes.iter().zip(&head.sub_scales).enumerate() {
        let mut dot = [lanes.splat_i32(0); T];
        prefetch::<L, C, T>(lanes, codes);
        for_each_quad!(0 1 2 3 4 5 6 7, J => {
            let quad = codes.quad::<L, J>(lanes);
            for t in 0..T {
                dot[t] = lanes.dot4(dot[t], quad, x[t].codes[8 * j + J]);
            }
            keep_order(lanes, &mut dot);
        });
        let sub_scale = lanes.widen_u8(sub_scale);
        for t in 0..T {
            sum[t] = lanes.multiply_add(dot[t], sub_scale, sum[t]);
        }
    }
    add_sub_min(lanes, head, x, &sum, acc);
}

/// Integer scales per 16 under one scale per 256, codes around 32.
#[inline(always)]
pub(crate) fn accumulate_sub_scale<L: Lanes, C: Codes, const T: usize>(
    lanes: L,
    codes: &[C; 8],
    head: &SubScaleHead,
    x: &[Block256; T],
    acc: &mut [L::F32; T],
) {
    let mut sum = [lanes.splat_i32(0); T];
    for (j, (codes, sub_scales)) in codes.iter().zip(head.sub_scales.as_chunks::<2>().0).enumerate() {
        let mut dot = [lanes.splat_i32(0); T];
        for t in 0..T {
            dot[t] = lanes.splat_i32(x[t].offset_sums[2 * j]);
        }
        if T > 1 {
            codes.prefetch(lanes);
        }
        for_each_quad!(0 1 2 3, J => {
            let quad = codes.quad::<L, J>(lanes);
            for t in 0..T {
                dot[t] = lanes.dot4(dot[t], quad, x[t].codes[8 * j + J]);
            }
            keep_order(lanes, &mut dot);
        });
        let sub_scale = lanes.widen_i8(&sub_scales[0]);
        for t in 0..T {
            sum[t] = lanes.multiply_add(dot[t], sub_scale, sum[t]);
            dot[t] = lanes.splat_i32(x[t].offset_sums[2 * j + 1]);
        }
        for_each_quad!(4 5 6 7, J => {
            let quad = codes.quad::<L, J>(lanes);
            for t in 0..T {
                dot[t] = lanes.dot4(dot[t], quad, x[t].codes[8 * j + J]);
            }
            keep_order(lanes, &mut dot);
        });
        let sub_scale = lanes.widen_i8(&sub_scales[1]);
        for t in 0..T {
            sum[t] = lanes.multiply_add(dot[t], sub_scale, sum[t]);
        }
    }
    add_sub_scale(lanes, head, x, &sum, acc);
}

/// Adds the exact sums `dot` of one step under its scale, offsets included.
#[inline(always)]
pub(crate) fn add_scaled<L: Lanes, const T: usize>(
    lanes: L,
    head: &ScaleHead,
    x: &[Block32; T],
    dot: &[L::I32; T],
    acc: &mut [L::F32; T],
) {
    let scale = lanes.halves(&head.scale);
    for t in 0..T {
        acc[t] = lanes.fma(lanes.mul(scale, lanes.splat(x[t].scale)), lanes.to_f32(dot[t]), acc[t]);
    }
}

/// Adds the exact sums `dot` of one step under its scale, and the minimum.
#[inline(always)]
pub(crate) fn add_with_min<L: Lanes, const T: usize>(
    lanes: L,
    head: &ScaleMinHead,
    x: &[Block32; T],
    dot: &[L::I32; T],
    acc: &mut [L::F32; T],
) {
    let (scale, min) = (lanes.halves(&head.scale), lanes.halves(&head.min));
    for t in 0..T {
        acc[t] = lanes.fma(lanes.mul(scale, lanes.splat(x[t].scale)), lanes.to_f32(dot[t]), acc[t]);
        acc[t] = lanes.fma(min, lanes.splat(x[t].scaled_sum), acc[t]);
    }
}

/// Adds the exact sums of one superblock, sub-scales included, under its scale, and takes the minimums off.
#[inline(always)]
pub(crate) fn add_sub_min<L: Lanes, const T: usize>(
    lanes: L,
    head: &SubMinHead,
    x: &[Block256; T],
    sum: &[L::I32; T],
    acc: &mut [L::F32; T],
) {
    add_superblock(lanes, &head.scale, x, sum, acc);
    let mut mins = [lanes.splat_i32(0); T];
    for (p, sub_mins) in head.sub_mins.iter().enumerate() {
        for t in 0..T {
            mins[t] = lanes.dot2(mins[t], sub_mins, x[t].sums[p]);
        }
    }
    let min = lanes.halves(&head.min);
    for t in 0..T {
        acc[t] = lanes.negated_fma(lanes.mul(min, lanes.splat(x[t].scale)), lanes.to_f32(mins[t]), acc[t]);
    }
}

/// Adds the exact sums of one superblock, sub-scales and offsets included, under its scale.
#[inline(always)]
pub(crate) fn add_sub_scale<L: Lanes, const T: usize>(
    lanes: L,
    head: &SubScaleHead,
    x: &[Block256; T],
    sum: &[L::I32; T],
    acc: &mut [L::F32; T],
) {
    add_superblock(lanes, &head.scale, x, sum, acc);
}

/// What both kinds of superblocks begin with: the exact sums under the superblock's scale.
#[inline(always)]
fn add_superblock<L: Lanes, const T: usize>(
    lanes: L,
    scale: &Halves,
    x: &[Block256; T],
    sum: &[L::I32; T],
    acc: &mut [L::F32; T],
) {
    let scale = lanes.halves(scale);
    for t in 0..T {
        acc[t] = lanes.fma(lanes.mul(scale, lanes.splat(x[t].scale)), lanes.to_f32(sum[t]), acc[t]);
    }
}
