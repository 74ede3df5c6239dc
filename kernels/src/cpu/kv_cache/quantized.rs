//! The tiles of a q8_0 cache: bytes with half-precision scales, laid out for products of pairs of integers.
//!
//! A tile is, one after the other: key codes `[dimension pairs][16 tokens][2 dimensions]`, key scales
//! `[groups of 32 dimensions][16 tokens]`, value scales `[16 tokens]`, value codes
//! `[8 token pairs][dimensions][2 tokens]`. So 32 bytes are always sixteen lanes of two neighbours whose products
//! are added: two dimensions of a key, or two tokens of a value. Keys have a scale for every 32 dimensions,
//! since some dimensions of a key are regularly much larger than others; values have one for each token, which
//! attention multiplies into the token's weight.
//! What holds always: scales and codes follow from the token's own numbers alone; codes are within ±127; a number
//! that is not finite makes its scale infinite or no number, so that attention to it shows.

use half::f16;

use super::{BLOCK_TOKENS, KvLayout, Token};
use crate::cpu::math::{Kernel, LANES, Simd};

/// Dimensions of a key that share a scale, as in ggml's q8_0.
pub(in crate::cpu) const KEY_GROUP: usize = 32;
/// The largest code.
const CODE_MAX: f32 = 127.0;
/// Bytes of sixteen lanes of two codes, and of sixteen scales.
const VECTOR_BYTES: usize = 2 * LANES;

/// How many vectors of 32 bytes the parts of a tile have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileShape {
    key_codes: usize,
    key_scales: usize,
    value_codes: usize,
}

impl TileShape {
    pub(super) fn of(layout: &KvLayout) -> TileShape {
        TileShape {
            key_codes: layout.head_dim.div_ceil(2),
            key_scales: layout.head_dim.div_ceil(KEY_GROUP),
            value_codes: (layout.value_dim() / LANES).saturating_mul(BLOCK_TOKENS / 2),
        }
    }

    /// Where the value scales lie.
    fn value_scales_at(self) -> usize {
        self.key_codes + self.key_scales
    }

    /// Vectors of a tile.
    fn vectors(self) -> usize {
        self.value_scales_at().saturating_add(1).saturating_add(self.value_codes)
    }

    pub(super) fn bytes(self) -> usize {
        self.vectors().saturating_mul(VECTOR_BYTES)
    }
}

/// The tiles of one layer.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct QuantizedTiles<'a> {
    vectors: &'a [[u8; VECTOR_BYTES]],
    kv_heads: usize,
    shape: TileShape,
}

/// What one block holds for one layer and head.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct QuantizedTile<'a> {
    /// `[dimension pairs]`: two dimensions of sixteen tokens.
    pub(in crate::cpu) key_codes: &'a [[[i8; 2]; LANES]],
    /// `[groups]`: half-precision bits for sixteen tokens.
    pub(in crate::cpu) key_scales: &'a [[u16; LANES]],
    /// Half-precision bits for sixteen tokens.
    pub(in crate::cpu) value_scales: &'a [u16; LANES],
    /// `[8 token pairs][vectors of dimensions]`: two tokens of sixteen dimensions.
    pub(in crate::cpu) value_codes: &'a [[[i8; 2]; LANES]],
}

impl<'a> QuantizedTiles<'a> {
    pub(super) fn new(bytes: &'a [u8], layout: &KvLayout) -> Self {
        let vectors = bytes.as_chunks().0;
        QuantizedTiles { vectors, kv_heads: layout.kv_heads, shape: TileShape::of(layout) }
    }

    #[inline(always)]
    pub(in crate::cpu) fn tile(&self, block: u32, kv_head: usize) -> QuantizedTile<'a> {
        let len = self.shape.vectors();
        let start = (block as usize * self.kv_heads + kv_head) * len;
        let tile = &self.vectors[start..start + len];
        let (keys, values) = tile.split_at(self.shape.value_scales_at());
        let (key_codes, key_scales) = keys.split_at(self.shape.key_codes);
        QuantizedTile {
            key_codes: bytemuck::cast_slice(key_codes),
            key_scales: bytemuck::cast_slice(key_scales),
            value_scales: bytemuck::cast_ref(&values[0]),
            value_codes: bytemuck::cast_slice(&values[1..]),
        }
    }
}

/// Stores one token of one head.
pub(super) struct StoreQuantized<'a>(pub(super) Token<'a, u8>);

impl Kernel for StoreQuantized<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Token { layout, k, v, offset, tile } = self.0;
        let shape = TileShape::of(layout);
        let (keys, values) = tile.as_chunks_mut().0.split_at_mut(shape.value_scales_at());
        let (key_codes, key_scales) = keys.split_at_mut(shape.key_codes);
        let groups = k.chunks(KEY_GROUP).zip(key_codes.chunks_mut(KEY_GROUP / 2));
        for ((group, codes), scales) in groups.zip(key_scales) {
            let scale = Scale::of(group);
            write_scale(scale, offset, scales);
            for (pair, codes) in group.chunks(2).zip(codes) {
                for (half, &x) in pair.iter().enumerate() {
                    codes[2 * offset + half] = scale.code(x) as u8;
                }
            }
        }
        let Some((scales, codes)) = values.split_first_mut() else { return };
        let scale = Scale::of(v);
        write_scale(scale, offset, scales);
        let row = codes.len() / (BLOCK_TOKENS / 2);
        let codes = &mut codes[offset / 2 * row..][..row];
        for (v, codes) in v.chunks(LANES).zip(codes) {
            for (lane, &x) in v.iter().enumerate() {
                codes[2 * lane + offset % 2] = scale.code(x) as u8;
            }
        }
    }
}

#[inline(always)]
fn write_scale(scale: Scale, token: usize, scales: &mut [u8; VECTOR_BYTES]) {
    scales[2 * token..2 * token + 2].copy_from_slice(&scale.bits.to_ne_bytes());
}

/// What codes stand for.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Half-precision bits of what code 1 stands for.
    bits: u16,
    /// Codes of 1.0, by the scale as it is stored.
    inverse: f32,
}

impl Scale {
    /// The scale at which the largest of `values` gets the largest code.
    #[inline(always)]
    fn of(values: &[f32]) -> Scale {
        let mut largest = 0.0f32;
        // Stays 0 unless there is a number that is not finite.
        let mut defect = 0.0f32;
        for &x in values {
            let size = x.abs();
            largest = if size > largest { size } else { largest };
            defect += x * 0.0;
        }
        let bits = f16::from_f32(largest / CODE_MAX + defect).to_bits();
        let scale = f16::from_bits(bits).to_f32();
        let inverse = if scale > 0.0 && scale.is_finite() { 1.0 / scale } else { 0.0 };
        Scale { bits, inverse }
    }

    #[inline(always)]
    fn code(self, x: f32) -> i8 {
        (x * self.inverse).round_ties_even().clamp(-CODE_MAX, CODE_MAX) as i8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f32]) {
        let scale = Scale::of(values);
        let step = f64::from(f16::from_bits(scale.bits).to_f32());
        let largest = values.iter().fold(0.0f64, |a, &x| a.max(f64::from(x).abs()));
        for &x in values {
            let error = (f64::from(scale.code(x)) * step - f64::from(x)).abs();
            // Half a step, and what rounding the scale to half precision leaves beyond the largest code: with
            // 11 bits less than half a step, below the normal numbers at most 127 times half the smallest number.
            let bound = largest / 127.0 * 0.5 * (1.0 + 1e-3) + 127.0 * 2f64.powi(-25);
            assert!(error <= bound, "{x}: {error} of {bound}, scale {step}");
        }
    }

    #[test]
    fn codes_are_within_half_a_step() {
        check(&[0.0; 8]);
        check(&[1.0, -0.3, 0.004, 0.0039, -1.0]);
        check(&[60000.0, 1.0, -59999.5]);
        check(&[3e-6, -2e-6, 1e-9]);
        for exponent in -20..17 {
            let values: Vec<f32> =
                (0..32).map(|i| ((i * 29 % 64) as f32 - 31.3) * 2f32.powi(exponent)).collect();
            check(&values);
        }
    }

    #[test]
    fn what_is_not_finite_shows_in_the_scale() {
        for defect in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let scale = Scale::of(&[1.0, defect, -2.0]);
            assert!(!f16::from_bits(scale.bits).is_finite(), "{defect}");
            assert_eq!([scale.code(1.0), scale.code(defect)], [0, 0]);
        }
        assert!(!f16::from_bits(Scale::of(&[1e30]).bits).is_finite(), "beyond half precision");
    }
}
