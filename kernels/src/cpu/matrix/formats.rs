//! What each quantized type is made of: its raw block, packed codes, packed scales and activations.
//!
//! A [`Format`] ties a raw block to a layout and to the arithmetic of `matmul::tile`; adding a type means adding
//! one here and one line to each `match` of `Matrix`.

use super::layout::{
    Codes, Codes4, Codes5, Codes6, Codes8, GROUP_ROWS, QUADS, ScaleHead, ScaleMinHead, StepWords, SubMinHead,
    SubScaleHead,
};
use crate::blocks::{
    BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, Q4_0_OFFSET,
    Q5_0_OFFSET, RawBlock, sub_scale_and_min,
};
use crate::cpu::matmul::activations::{ActivationBlock, Block32, Block256};
use crate::cpu::matmul::lanes::Lanes;
use crate::cpu::matmul::tile;
use bytemuck::Pod;

/// The same block of 16 weight rows, as it lies in the file.
pub(crate) type RawRows<'a, B> = [&'a B; GROUP_ROWS];

/// A quantized weight type.
pub(crate) trait Format: 'static {
    /// A block in the file.
    type Raw: RawBlock;
    /// The codes of 16 packed blocks.
    type Codes: Pod + Send + Sync;
    /// The scales of 16 packed blocks.
    type Head: Pod + Send + Sync;
    /// The activations of one block.
    type Activation: ActivationBlock;

    /// Packs the same block of 16 rows.
    fn pack(raw: &RawRows<'_, Self::Raw>) -> (Self::Codes, Self::Head);

    /// Adds the products of a packed block with the same block of `T` token rows, in the order `tile` fixes.
    fn accumulate<L: Lanes, const T: usize>(
        lanes: L,
        codes: &Self::Codes,
        head: &Self::Head,
        x: &[Self::Activation; T],
        acc: &mut [L::F32; T],
    );
}

/// Gathers the codes of one step of 16 rows and packs them.
#[inline(always)]
fn pack_step<B: RawBlock, C: Codes>(raw: &RawRows<'_, B>, step: usize) -> C {
    let mut words: StepWords = [[0; GROUP_ROWS]; QUADS];
    for (row, block) in raw.iter().enumerate() {
        let codes: [u32; QUADS] = bytemuck::cast(block.codes(step));
        for (quad, word) in words.iter_mut().zip(codes) {
            quad[row] = word;
        }
    }
    C::pack(&words)
}

#[inline(always)]
fn pack_steps<B: RawBlock, C: Codes>(raw: &RawRows<'_, B>) -> [C; 8] {
    let mut codes = [C::zeroed(); 8];
    for (step, codes) in codes.iter_mut().enumerate() {
        *codes = pack_step(raw, step);
    }
    codes
}

/// The scale of each row, or its minimum.
#[inline(always)]
fn halves<B>(raw: &RawRows<'_, B>, field: impl Fn(&B) -> [u8; 2]) -> [u16; GROUP_ROWS] {
    raw.map(|block| u16::from_le_bytes(field(block)))
}

/// The scales of a K-quant with minimums.
#[inline(always)]
fn sub_min_head<B>(raw: &RawRows<'_, B>, fields: impl Fn(&B) -> ([u8; 2], [u8; 2], [u8; 12])) -> SubMinHead {
    let mut head = SubMinHead {
        scale: halves(raw, |block| fields(block).0),
        min: halves(raw, |block| fields(block).1),
        sub_scales: [[0; GROUP_ROWS]; 8],
        sub_mins: [[[0; 2]; GROUP_ROWS]; 4],
    };
    for (row, block) in raw.iter().enumerate() {
        let bytes = fields(block).2;
        for j in 0..8 {
            let (scale, min) = sub_scale_and_min(&bytes, j);
            head.sub_scales[j][row] = scale;
            head.sub_mins[j / 2][row][j % 2] = min;
        }
    }
    head
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident: $raw:ty, $codes:ty, $head:ty, $activation:ty;
     pack $pack:expr; accumulate $accumulate:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl Format for $name {
            type Raw = $raw;
            type Codes = $codes;
            type Head = $head;
            type Activation = $activation;

            #[inline(always)]
            fn pack(raw: &RawRows<'_, $raw>) -> ($codes, $head) {
                $pack(raw)
            }

            #[inline(always)]
            fn accumulate<L: Lanes, const T: usize>(
                lanes: L,
                codes: &$codes,
                head: &$head,
                x: &[$activation; T],
                acc: &mut [L::F32; T],
            ) {
                $accumulate(lanes, codes, head, x, acc);
            }
        }
    };
}

format! {
    /// Signed bytes, packed around 128.
    Q8_0: BlockQ8_0, Codes8, ScaleHead, Block32;
    pack |raw| (pack_step(raw, 0), ScaleHead { scale: halves(raw, |b: &BlockQ8_0| b.scale) });
    accumulate tile::accumulate_scaled_around_128::<L, Codes8, T>
}

format! {
    /// Four bits around 8.
    Q4_0: BlockQ4_0, Codes4, ScaleHead, Block32;
    pack |raw| (pack_step(raw, 0), ScaleHead { scale: halves(raw, |b: &BlockQ4_0| b.scale) });
    accumulate tile::accumulate_scaled::<L, Codes4, Q4_0_OFFSET, T>
}

format! {
    /// Five bits around 16.
    Q5_0: BlockQ5_0, Codes5, ScaleHead, Block32;
    pack |raw| (pack_step(raw, 0), ScaleHead { scale: halves(raw, |b: &BlockQ5_0| b.scale) });
    accumulate tile::accumulate_scaled::<L, Codes5, Q5_0_OFFSET, T>
}

format! {
    /// Four bits and a minimum.
    Q4_1: BlockQ4_1, Codes4, ScaleMinHead, Block32;
    pack |raw| (
        pack_step(raw, 0),
        ScaleMinHead { scale: halves(raw, |b: &BlockQ4_1| b.scale), min: halves(raw, |b: &BlockQ4_1| b.min) },
    );
    accumulate tile::accumulate_with_min::<L, Codes4, T>
}

format! {
    /// Five bits and a minimum.
    Q5_1: BlockQ5_1, Codes5, ScaleMinHead, Block32;
    pack |raw| (
        pack_step(raw, 0),
        ScaleMinHead { scale: halves(raw, |b: &BlockQ5_1| b.scale), min: halves(raw, |b: &BlockQ5_1| b.min) },
    );
    accumulate tile::accumulate_with_min::<L, Codes5, T>
}

format! {
    /// Four bits, integer scales and minimums per 32.
    Q4K: BlockQ4K, [Codes4; 8], SubMinHead, Block256;
    pack |raw| (pack_steps(raw), sub_min_head(raw, |b: &BlockQ4K| (b.scale, b.min, b.sub_scales)));
    accumulate tile::accumulate_sub_min::<L, Codes4, T>
}

format! {
    /// Five bits, integer scales and minimums per 32.
    Q5K: BlockQ5K, [Codes5; 8], SubMinHead, Block256;
    pack |raw| (pack_steps(raw), sub_min_head(raw, |b: &BlockQ5K| (b.scale, b.min, b.sub_scales)));
    accumulate tile::accumulate_sub_min::<L, Codes5, T>
}

format! {
    /// Six bits around 32, integer scales per 16.
    Q6K: BlockQ6K, [Codes6; 8], SubScaleHead, Block256;
    pack |raw: &RawRows<'_, BlockQ6K>| {
        let mut sub_scales = [[0; GROUP_ROWS]; 16];
        for (row, block) in raw.iter().enumerate() {
            for (lanes, scale) in sub_scales.iter_mut().zip(block.sub_scales) {
                lanes[row] = scale;
            }
        }
        (pack_steps(raw), SubScaleHead { scale: halves(raw, |b: &BlockQ6K| b.scale), sub_scales })
    };
    accumulate tile::accumulate_sub_scale::<L, Codes6, T>
}
