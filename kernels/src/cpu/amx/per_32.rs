//! Q8_0, Q4_0, Q5_0, Q4_1 and Q5_1 through tiles: one f32 scale per 32 columns, so half a tile at a time.
//!
//! Codes become signed bytes with their offset taken off, so that a tile product is the exact sum that the f32
//! arithmetic needs. No integer overflows: 32 * 128 * 127 is half a million. Scaling after every half tile costs more
//! than the product, so these formats gain less from tiles than the K-quants.

use super::panel::{Planes, Products, Sums, TileFormat, UnitRows, in_strips, load, load_sums, store};
use super::tiles::{Depth, Tiles, Vector};
use crate::blocks::{Q4_0_OFFSET, Q5_0_OFFSET, Q8_0_OFFSET};
use crate::cpu::matmul::activations::Block32;
use crate::cpu::matmul::avx512::Avx512;
use crate::cpu::matmul::tile;
use crate::cpu::matrix::formats::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::cpu::matrix::layout::{Codes, QUADS, ScaleHead, ScaleMinHead};
use std::arch::x86_64::*;

/// Blocks in a chunk: as many as the sums of a unit hold. Products stay in registers over them.
const BLOCKS: usize = 8;

#[inline(always)]
fn expand<C: Codes, const OFFSET: i32>(lanes: Avx512, codes: &[C], planes: &mut Planes) {
    for (codes, vectors) in codes.iter().zip(planes.as_chunks_mut::<QUADS>().0) {
        codes.prefetch(lanes);
        put::<OFFSET>(&mut vectors[0], codes.quad::<_, 0>(lanes));
        put::<OFFSET>(&mut vectors[1], codes.quad::<_, 1>(lanes));
        put::<OFFSET>(&mut vectors[2], codes.quad::<_, 2>(lanes));
        put::<OFFSET>(&mut vectors[3], codes.quad::<_, 3>(lanes));
        put::<OFFSET>(&mut vectors[4], codes.quad::<_, 4>(lanes));
        put::<OFFSET>(&mut vectors[5], codes.quad::<_, 5>(lanes));
        put::<OFFSET>(&mut vectors[6], codes.quad::<_, 6>(lanes));
        put::<OFFSET>(&mut vectors[7], codes.quad::<_, 7>(lanes));
    }
}

/// Writes codes with their offset taken off; 128 wraps to -128, so that 0 ..= 255 become -128 ..= 127.
#[inline(always)]
fn put<const OFFSET: i32>(vector: &mut Vector, codes: __m512i) {
    // SAFETY: 64 bytes behind a reference; an AVX-512 vector exists only where its instructions do.
    unsafe {
        let signed = _mm512_sub_epi8(codes, _mm512_set1_epi8(OFFSET as i8));
        _mm512_storeu_si512(vector.as_mut_ptr().cast(), signed);
    }
}

/// One block: its sums with 16 token rows.
#[inline(always)]
fn multiply_block<const C: usize, const A: usize, const B: usize>(
    tiles: &Tiles,
    weights: &[Vector; QUADS],
    x: &[Block32; 16],
    sums: &mut [[i32; 16]; 16],
) {
    tiles.zero::<C>();
    tiles.load_activations::<A, _>(x, std::mem::offset_of!(Block32, codes));
    tiles.load_weights::<B>(weights);
    tiles.add_signed::<C, A, B>();
    tiles.store::<C>(sums);
}

/// The sums of each block of the chunk, through all tile registers in turn so that the products overlap.
#[inline(always)]
fn multiply(tiles: &Tiles, planes: &Planes, x: &UnitRows<'_, Block32>, sums: &mut Sums) {
    let blocks = planes.as_chunks::<QUADS>().0.iter().zip(sums).take(x.blocks()).enumerate();
    for (block, (weights, sums)) in blocks {
        let x = x.block(0, block);
        match block % 4 {
            0 => multiply_block::<0, 4, 6>(tiles, weights, x, sums),
            1 => multiply_block::<1, 5, 7>(tiles, weights, x, sums),
            2 => multiply_block::<2, 4, 6>(tiles, weights, x, sums),
            _ => multiply_block::<3, 5, 7>(tiles, weights, x, sums),
        }
    }
}

macro_rules! tile_format {
    ($format:ty: $head:ty, $offset:expr, $add:path) => {
        impl TileFormat for $format {
            const DEPTH: Depth = Depth::Half;
            const CHUNK_BLOCKS: usize = BLOCKS;
            const UNIT_TOKEN_TILES: usize = 1;
            const FEWEST_TOKENS: usize = 16;

            #[inline(always)]
            fn expand(lanes: Avx512, codes: &[Self::Codes], _heads: &[$head], planes: &mut Planes) {
                expand::<Self::Codes, { $offset }>(lanes, codes, planes);
            }

            #[inline(always)]
            fn multiply(tiles: &Tiles, planes: &Planes, x: &UnitRows<'_, Block32>, sums: &mut Sums) {
                multiply(tiles, planes, x, sums);
            }

            #[inline(always)]
            fn add(
                lanes: Avx512,
                heads: &[$head],
                sums: &Sums,
                x: &UnitRows<'_, Block32>,
                out: &mut [Products],
            ) {
                in_strips!(out.len(), T, at => {
                    let mut acc = load::<T>(lanes, &out[at..]);
                    for (block, (head, sums)) in heads.iter().zip(sums).enumerate() {
                        let Some(x) = x.block(0, block)[at..].first_chunk::<T>() else {
                            unreachable!("at + T <= 16")
                        };
                        let dot: [__m512i; T] = std::array::from_fn(|t| load_sums(lanes, &sums[at + t]));
                        $add(lanes, head, x, &dot, &mut acc);
                    }
                    store(lanes, &acc, &mut out[at..]);
                });
            }
        }
    };
}

tile_format!(Q8_0: ScaleHead, Q8_0_OFFSET, tile::add_scaled);
tile_format!(Q4_0: ScaleHead, Q4_0_OFFSET, tile::add_scaled);
tile_format!(Q5_0: ScaleHead, Q5_0_OFFSET, tile::add_scaled);
tile_format!(Q4_1: ScaleMinHead, 0, tile::add_with_min);
tile_format!(Q5_1: ScaleMinHead, 0, tile::add_with_min);
