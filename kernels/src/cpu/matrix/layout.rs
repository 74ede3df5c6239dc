//! The packed layout of quantized weights: 16 output rows interleaved, one 32-bit lane each.
//!
//! A *vector* is 64 bytes: four consecutive columns (a *quad*) of 16 rows, so that one dot-product
//! instruction against four broadcast activation codes advances 16 output rows, and no sum ever crosses
//! lanes. A *step* is 32 columns, eight quads. Written by `pack`, read by `matmul::tile`; both go through
//! [`Codes`], so this file alone knows where a bit lies. Codes are unsigned; offsets are not stored.

use crate::blocks::CODES_PER_STEP;
use crate::cpu::matmul::lanes::Lanes;
use bytemuck::{Pod, Zeroable};

/// Output rows in a group: the 32-bit lanes of a 512-bit vector.
pub(crate) const GROUP_ROWS: usize = 16;
/// Quads of columns in a step.
pub(crate) const QUADS: usize = CODES_PER_STEP / 4;

type Vector = [u8; 64];

/// The codes of one step before packing: `words[quad][row]`, four codes a word in memory order.
pub(crate) type StepWords = [[u32; GROUP_ROWS]; QUADS];

/// The packed codes of one step of 16 rows.
pub(crate) trait Codes: Pod {
    /// Packs `words`; every code must fit the type's bits.
    fn pack(words: &StepWords) -> Self;

    /// The unsigned codes of quad `J`, one byte each.
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes;
}

/// Four bits: vector v holds quad 2v in its low nibbles and quad 2v + 1 in its high ones.
#[repr(transparent)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes4([Vector; 4]);

/// Five bits: nibbles, and the fifth bit of quad j as bit j of one more vector.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes5 {
    nibbles: Codes4,
    high: Vector,
}

/// Six bits: nibbles, and the upper two bits of quad j as bits `2 (j % 4) ..` of vector `j / 4`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes6 {
    nibbles: Codes4,
    high: [Vector; 2],
}

/// Eight bits: one vector a quad.
#[repr(transparent)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes8([Vector; QUADS]);

impl Codes for Codes4 {
    #[inline(always)]
    fn pack(words: &StepWords) -> Self {
        let mut vectors = [[0u32; GROUP_ROWS]; 4];
        for (v, vector) in vectors.iter_mut().enumerate() {
            for (row, lane) in vector.iter_mut().enumerate() {
                let low = words[2 * v][row] & 0x0f0f_0f0f;
                let high = words[2 * v + 1][row] & 0x0f0f_0f0f;
                *lane = low | high << 4;
            }
        }
        Codes4(bytemuck::cast(vectors))
    }

    #[inline(always)]
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes {
        let vector = lanes.load(&self.0[J / 2]);
        if J.is_multiple_of(2) { lanes.low_nibbles(vector) } else { lanes.high_nibbles(vector) }
    }
}

impl Codes for Codes5 {
    #[inline(always)]
    fn pack(words: &StepWords) -> Self {
        let mut high = [0u32; GROUP_ROWS];
        for (j, quad) in words.iter().enumerate() {
            for (lane, word) in high.iter_mut().zip(quad) {
                *lane |= (word >> 4 & 0x0101_0101) << j;
            }
        }
        Codes5 { nibbles: Codes4::pack(words), high: bytemuck::cast(high) }
    }

    #[inline(always)]
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes {
        let nibbles = self.nibbles.quad::<L, J>(lanes);
        lanes.or_bits(nibbles, lanes.load(&self.high), 4 - J as i32, 0x10)
    }
}

impl Codes for Codes6 {
    #[inline(always)]
    fn pack(words: &StepWords) -> Self {
        let mut high = [[0u32; GROUP_ROWS]; 2];
        for (j, quad) in words.iter().enumerate() {
            for (lane, word) in high[j / 4].iter_mut().zip(quad) {
                *lane |= (word >> 4 & 0x0303_0303) << (2 * (j % 4));
            }
        }
        Codes6 { nibbles: Codes4::pack(words), high: bytemuck::cast(high) }
    }

    #[inline(always)]
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes {
        let nibbles = self.nibbles.quad::<L, J>(lanes);
        lanes.or_bits(nibbles, lanes.load(&self.high[J / 4]), 4 - 2 * (J % 4) as i32, 0x30)
    }
}

impl Codes for Codes8 {
    #[inline(always)]
    fn pack(words: &StepWords) -> Self {
        Codes8(bytemuck::cast(*words))
    }

    #[inline(always)]
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes {
        lanes.load(&self.0[J])
    }
}

/// Half precision bits, one per row.
pub(crate) type Halves = [u16; GROUP_ROWS];

/// The scales of a step of Q8_0, Q4_0 or Q5_0.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ScaleHead {
    pub(crate) scale: Halves,
}

/// The scales and minimums of a step of Q4_1 or Q5_1.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ScaleMinHead {
    pub(crate) scale: Halves,
    pub(crate) min: Halves,
}

/// The scales of a superblock of Q4_K or Q5_K. The six-bit scales are widened to bytes (2.8 % of Q4_K's size).
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct SubMinHead {
    pub(crate) scale: Halves,
    pub(crate) min: Halves,
    /// `[sub-block][row]`.
    pub(crate) sub_scales: [[u8; GROUP_ROWS]; 8],
    /// `[pair of sub-blocks][row][which of the pair]`.
    pub(crate) sub_mins: [[[u8; 2]; GROUP_ROWS]; 4],
}

/// The scales of a superblock of Q6_K.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct SubScaleHead {
    pub(crate) scale: Halves,
    /// `[sub-block of 16][row]`.
    pub(crate) sub_scales: [[i8; GROUP_ROWS]; 16],
}
