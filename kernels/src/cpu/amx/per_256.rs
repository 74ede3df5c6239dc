//! Q4_K, Q5_K and Q6_K through tiles: integer scales folded into the codes.
//!
//! A superblock's sum is `sum over 256 columns of (sub_scale * code) * x`, one integer under one f32 scale. The
//! weights `sub_scale * code` do not fit a byte, so they become two planes of bytes, and the sum is
//! `low + (high << shift)` of two tile products:
//! - Q4_K, Q5_K: `sub_scale = 8 * h + l` with h and l at most 7, so the planes hold `l * code` and `h * code`, at
//!   most 7 * 31 = 217, unsigned; shift 3. One 16-bit multiplication makes two bytes, since no byte carries.
//! - Q6_K: `sub_scale * (code - 32)` lies in -4064 ..= 4096; the planes are its low byte, unsigned, and its high
//!   byte, -16 ..= 16, signed; shift 8.
//!
//! No integer overflows, activations being within ±127: a plane's sum is at most 256 * 255 * 127 = 8.3 million
//! for an unsigned one and 256 * 16 * 127 = 0.52 million for Q6_K's high one; shifted, 8 * 7.1 = 57 million
//! (Q5_K's high) and 256 * 0.52 = 133 million; with the low plane below 2^31 by a factor of 15.

use super::panel::{Planes, Products, Sums, TileFormat, UnitRows, in_strips, load, load_sums, store};
use super::tiles::{Depth, Tiles, Vector};
use crate::cpu::matmul::activations::Block256;
use crate::cpu::matmul::avx512::Avx512;
use crate::cpu::matmul::lanes::Lanes;
use crate::cpu::matmul::tile;
use crate::cpu::matrix::formats::{Q4K, Q5K, Q6K};
use crate::cpu::matrix::layout::{Codes, Codes6, SubMinHead, SubScaleHead};
use std::arch::x86_64::*;

/// Vectors of one plane: 256 columns, four a vector.
const PLANE: usize = 64;
/// Vectors of one tile.
const TILE: usize = 16;
/// Where a block's codes lie.
const CODES_AT: usize = std::mem::offset_of!(Block256, codes);
/// Where the sums of a unit lie: `2 * token tile + plane`.
const LOW: usize = 0;
const HIGH: usize = 1;

/// The quads of one step.
#[inline(always)]
fn quads<C: Codes>(lanes: Avx512, codes: &C) -> [__m512i; 8] {
    codes.prefetch(lanes);
    [
        codes.quad::<_, 0>(lanes),
        codes.quad::<_, 1>(lanes),
        codes.quad::<_, 2>(lanes),
        codes.quad::<_, 3>(lanes),
        codes.quad::<_, 4>(lanes),
        codes.quad::<_, 5>(lanes),
        codes.quad::<_, 6>(lanes),
        codes.quad::<_, 7>(lanes),
    ]
}

#[inline(always)]
fn put(vector: &mut Vector, bytes: __m512i) {
    // SAFETY: 64 bytes behind a reference; an AVX-512 vector exists only where its instructions do.
    unsafe { _mm512_storeu_si512(vector.as_mut_ptr().cast(), bytes) };
}

/// Planes of Q4_K and Q5_K.
#[inline(always)]
fn expand_split_scale<C: Codes>(lanes: Avx512, codes: &[C; 8], head: &SubMinHead, planes: &mut Planes) {
    let (low, high) = planes.split_at_mut(PLANE);
    for (j, (codes, sub_scales)) in codes.iter().zip(&head.sub_scales).enumerate() {
        let scale = lanes.widen_u8(sub_scales);
        // SAFETY: `lanes` proves the instructions.
        let (low_scale, high_scale) = unsafe {
            // The scale in both halves of its lane.
            let pair = _mm512_or_si512(scale, _mm512_slli_epi32::<16>(scale));
            let seven = _mm512_set1_epi16(7);
            (_mm512_and_si512(pair, seven), _mm512_and_si512(_mm512_srli_epi16::<3>(pair), seven))
        };
        for (i, quad) in quads(lanes, codes).into_iter().enumerate() {
            // SAFETY: `lanes` proves the instructions.
            let (l, h) =
                unsafe { (_mm512_mullo_epi16(quad, low_scale), _mm512_mullo_epi16(quad, high_scale)) };
            put(&mut low[8 * j + i], l);
            put(&mut high[8 * j + i], h);
        }
    }
}

/// Planes of Q6_K.
#[inline(always)]
fn expand_wide_product(lanes: Avx512, codes: &[Codes6; 8], head: &SubScaleHead, planes: &mut Planes) {
    let (low, high) = planes.split_at_mut(PLANE);
    let sub_scales = head.sub_scales.as_chunks::<2>().0;
    for (j, (codes, sub_scales)) in codes.iter().zip(sub_scales).enumerate() {
        let quads = quads(lanes, codes);
        for (half, (quads, sub_scale)) in quads.as_chunks::<4>().0.iter().zip(sub_scales).enumerate() {
            let factors = WideFactors::of(lanes, sub_scale);
            for (i, quad) in quads.iter().enumerate() {
                let (l, h) = factors.planes(*quad);
                put(&mut low[8 * j + 4 * half + i], l);
                put(&mut high[8 * j + 4 * half + i], h);
            }
        }
    }
}

/// What the codes of Q6_K are multiplied with: 16-bit halves, two a lane.
struct WideFactors {
    /// The sub-scale as the even byte of each half, and as the odd one: the pair sums of the multiplication (at
    /// most 63 * 128) then are the products of the even codes, and of the odd ones.
    even: __m512i,
    odd: __m512i,
    /// 32 times the sub-scale.
    offset: __m512i,
}

impl WideFactors {
    #[inline(always)]
    fn of(lanes: Avx512, sub_scale: &[i8; 16]) -> Self {
        let scale = lanes.widen_i8(sub_scale);
        // SAFETY: `lanes` proves the instructions.
        unsafe {
            // The sub-scale in both halves of its lane.
            let pair = _mm512_mask_blend_epi16(0xaaaa_aaaa, scale, _mm512_slli_epi32::<16>(scale));
            WideFactors {
                even: _mm512_and_si512(pair, _mm512_set1_epi16(0xff)),
                odd: _mm512_slli_epi16::<8>(pair),
                offset: _mm512_slli_epi16::<5>(pair),
            }
        }
    }

    /// The low and the high bytes of `sub_scale * (code - 32)`.
    #[inline(always)]
    fn planes(&self, quad: __m512i) -> (__m512i, __m512i) {
        // SAFETY: `of` was given the proof of the instructions.
        unsafe {
            let even = _mm512_sub_epi16(_mm512_maddubs_epi16(quad, self.even), self.offset);
            let odd = _mm512_sub_epi16(_mm512_maddubs_epi16(quad, self.odd), self.offset);
            let mask = _mm512_set1_epi16(0xff);
            // 0xca: the second operand where the mask's bit is set, else the third.
            (
                _mm512_ternarylogic_epi32::<0xca>(mask, even, _mm512_slli_epi16::<8>(odd)),
                _mm512_ternarylogic_epi32::<0xca>(mask, _mm512_srli_epi16::<8>(even), odd),
            )
        }
    }
}

/// How a plane's bytes are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plane {
    Signed,
    Unsigned,
}

/// The high plane's products.
#[inline(always)]
fn add_high<const C: usize, const A: usize>(tiles: &Tiles, high: Plane) {
    match high {
        Plane::Signed => tiles.add_signed::<C, A, 7>(),
        Plane::Unsigned => tiles.add_unsigned::<C, A, 7>(),
    }
}

/// The sums of one or two tiles of token rows with both planes: each loaded tile is used as often as there is
/// another to use it with.
#[inline(always)]
fn multiply(tiles: &Tiles, high: Plane, planes: &Planes, x: &UnitRows<'_, Block256>, sums: &mut Sums) {
    let (low_plane, high_plane) = planes.split_at(PLANE);
    let first = x.block(0, 0);
    tiles.zero::<0>();
    tiles.zero::<1>();
    let second = (x.tiles() == 2).then(|| x.block(1, 0));
    if second.is_some() {
        tiles.zero::<2>();
        tiles.zero::<3>();
    }
    for k in 0..PLANE / TILE {
        let at = k * TILE;
        tiles.load_activations::<4, _>(first, CODES_AT + at * size_of::<i32>());
        tiles.load_weights::<6>(&low_plane[at..at + TILE]);
        tiles.add_unsigned::<0, 4, 6>();
        tiles.load_weights::<7>(&high_plane[at..at + TILE]);
        add_high::<1, 4>(tiles, high);
        if let Some(second) = second {
            tiles.load_activations::<5, _>(second, CODES_AT + at * size_of::<i32>());
            tiles.add_unsigned::<2, 5, 6>();
            add_high::<3, 5>(tiles, high);
        }
    }
    tiles.store::<0>(&mut sums[LOW]);
    tiles.store::<1>(&mut sums[HIGH]);
    if second.is_some() {
        tiles.store::<2>(&mut sums[2 + LOW]);
        tiles.store::<3>(&mut sums[2 + HIGH]);
    }
}

/// `low + (high << SHIFT)` of the `T` token rows from `at` on.
#[inline(always)]
fn whole_sums<const T: usize, const SHIFT: u32>(
    lanes: Avx512,
    sums: &Sums,
    tile: usize,
    at: usize,
) -> [__m512i; T] {
    let (low, high) = (&sums[2 * tile + LOW][at..], &sums[2 * tile + HIGH][at..]);
    std::array::from_fn(|t| {
        let (low, high) = (load_sums(lanes, &low[t]), load_sums(lanes, &high[t]));
        // SAFETY: `lanes` proves the instructions.
        unsafe { _mm512_add_epi32(low, _mm512_slli_epi32::<SHIFT>(high)) }
    })
}

macro_rules! tile_format {
    ($format:ty: $head:ty, $shift:literal, $high:expr, $expand:expr, $add:path) => {
        impl TileFormat for $format {
            const DEPTH: Depth = Depth::Full;
            const CHUNK_BLOCKS: usize = 1;
            const UNIT_TOKEN_TILES: usize = 2;
            const FEWEST_TOKENS: usize = 8;

            #[inline(always)]
            fn expand(lanes: Avx512, codes: &[Self::Codes], heads: &[$head], planes: &mut Planes) {
                $expand(lanes, &codes[0], &heads[0], planes);
            }

            #[inline(always)]
            fn multiply(tiles: &Tiles, planes: &Planes, x: &UnitRows<'_, Block256>, sums: &mut Sums) {
                multiply(tiles, $high, planes, x, sums);
            }

            #[inline(always)]
            fn add(
                lanes: Avx512,
                heads: &[$head],
                sums: &Sums,
                x: &UnitRows<'_, Block256>,
                out: &mut [Products],
            ) {
                for (tile, out) in out.chunks_mut(TILE).enumerate() {
                    let x = x.block(tile, 0);
                    in_strips!(out.len(), T, at => {
                        let Some(x) = x[at..].first_chunk::<T>() else { unreachable!("at + T <= 16") };
                        let sum = whole_sums::<T, $shift>(lanes, sums, tile, at);
                        let mut acc = load::<T>(lanes, &out[at..]);
                        $add(lanes, &heads[0], x, &sum, &mut acc);
                        store(lanes, &acc, &mut out[at..]);
                    });
                }
            }
        }
    };
}

tile_format!(Q4K: SubMinHead, 3, Plane::Unsigned, expand_split_scale, tile::add_sub_min);
tile_format!(Q5K: SubMinHead, 3, Plane::Unsigned, expand_split_scale, tile::add_sub_min);
tile_format!(Q6K: SubScaleHead, 8, Plane::Signed, expand_wide_product, tile::add_sub_scale);
