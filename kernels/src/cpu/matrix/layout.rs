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

/// How far ahead weights are asked for.
const PREFETCH_BYTES: usize = 4096;

type Vector = [u8; 64];

/// The codes of one step before packing: `words[quad][row]`, four codes a word in memory order.
pub(crate) type StepWords = [[u32; GROUP_ROWS]; QUADS];

/// The packed codes of one step of 16 rows.
pub(crate) trait Codes: Pod {
    /// Packs `words`; every code must fit the type's bits.
    fn pack(words: &StepWords) -> Self;

    /// The unsigned codes of quad `J`, one byte each.
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes;

    /// Asks for codes that will be needed some steps later.
    #[inline(always)]
    fn prefetch<L: Lanes>(&self, lanes: L) {
        for vector in bytemuck::bytes_of(self).chunks_exact(size_of::<Vector>()) {
            lanes.prefetch(&vector[0], PREFETCH_BYTES);
        }
    }

    /// As [`prefetch`](Self::prefetch), where no other token row will read them.
    #[inline(always)]
    fn prefetch_once<L: Lanes>(&self, lanes: L) {
        for vector in bytemuck::bytes_of(self).chunks_exact(size_of::<Vector>()) {
            lanes.prefetch_once(&vector[0], PREFETCH_BYTES);
        }
    }
}

/// Four bits: vector v holds quad 2v in its low nibbles and quad 2v + 1 in its high ones.
#[repr(transparent)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes4([Vector; 4]);

/// Five bits: the fifth bit of quad j as bit j of one vector, and nibbles. The high bits come first since
/// hardware prefetchers follow vectors used in the order they lie in.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes5 {
    high: Vector,
    nibbles: [Vector; 4],
}

/// Six bits, in two halves of four quads each.
#[repr(transparent)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes6([HalfCodes6; 2]);

/// The upper two bits of the half's quad j as bits `2j ..` of one vector, and nibbles.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HalfCodes6 {
    high: Vector,
    nibbles: [Vector; 2],
}

/// Eight bits: one vector a quad.
#[repr(transparent)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Codes8([Vector; QUADS]);

/// Packs the low nibbles of two quads into one vector.
#[inline(always)]
fn pack_nibbles(words: &[[u32; GROUP_ROWS]]) -> Vector {
    let mut vector = [0u32; GROUP_ROWS];
    for (row, lane) in vector.iter_mut().enumerate() {
        *lane = words[0][row] & 0x0f0f_0f0f | (words[1][row] & 0x0f0f_0f0f) << 4;
    }
    bytemuck::cast(vector)
}

/// Packs what lies above the nibbles: `bits` of each code of the quads, side by side.
#[inline(always)]
fn pack_high(words: &[[u32; GROUP_ROWS]], mask: u32, bits: usize) -> Vector {
    let mut vector = [0u32; GROUP_ROWS];
    for (j, quad) in words.iter().enumerate() {
        for (lane, word) in vector.iter_mut().zip(quad) {
            *lane |= (word >> 4 & mask) << (j * bits);
        }
    }
    bytemuck::cast(vector)
}

/// The nibble of quad `J` from the vectors that hold two quads each.
#[inline(always)]
fn nibbles<L: Lanes>(lanes: L, vectors: &[Vector], quad: usize) -> L::Bytes {
    let vector = lanes.load(&vectors[quad / 2]);
    if quad.is_multiple_of(2) { lanes.low_nibbles(vector) } else { lanes.high_nibbles(vector) }
}

impl Codes for Codes4 {
    #[inline(always)]
    fn pack(words: &StepWords) -> Self {
        let mut vectors = [[0; 64]; 4];
        for (vector, words) in vectors.iter_mut().zip(words.chunks_exact(2)) {
            *vector = pack_nibbles(words);
        }
        Codes4(vectors)
    }

    #[inline(always)]
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes {
        nibbles(lanes, &self.0, J)
    }
}

impl Codes for Codes5 {
    #[inline(always)]
    fn pack(words: &StepWords) -> Self {
        Codes5 { high: pack_high(words, 0x0101_0101, 1), nibbles: Codes4::pack(words).0 }
    }

    #[inline(always)]
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes {
        let low = nibbles(lanes, &self.nibbles, J);
        lanes.or_bits(low, lanes.load(&self.high), 4 - J as i32, 0x10)
    }
}

impl Codes for Codes6 {
    #[inline(always)]
    fn pack(words: &StepWords) -> Self {
        let half = |words: &[[u32; GROUP_ROWS]]| HalfCodes6 {
            high: pack_high(words, 0x0303_0303, 2),
            nibbles: [pack_nibbles(&words[..2]), pack_nibbles(&words[2..])],
        };
        Codes6([half(&words[..4]), half(&words[4..])])
    }

    #[inline(always)]
    fn quad<L: Lanes, const J: usize>(&self, lanes: L) -> L::Bytes {
        let half = &self.0[J / 4];
        let low = nibbles(lanes, &half.nibbles, J % 4);
        lanes.or_bits(low, lanes.load(&half.high), 4 - 2 * (J % 4) as i32, 0x30)
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
