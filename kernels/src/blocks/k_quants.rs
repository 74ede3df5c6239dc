//! The K-quants: 256 elements under one f16 scale, with small integer scales per 32 or per 16.
//!
//! Used by `dequantize` and by the packer of `cpu::matrix`. Sub-block `j` of Q4_K and Q5_K holds elements
//! `32j ..` and is worth `scale * sub_scale[j] * code - min * sub_min[j]`; sub-block `j` of Q6_K holds elements
//! `16j ..` and is worth `scale * sub_scale[j] * (code - 32)`.

use super::{CODES_PER_STEP, RawBlock, half_to_f32};
use bytemuck::{Pod, Zeroable};

/// Four-bit codes; chunk c of 32 bytes holds sub-block 2c in its low nibbles and 2c + 1 in its high ones.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4K {
    /// f16, little endian.
    pub scale: [u8; 2],
    /// f16, little endian.
    pub min: [u8; 2],
    /// Eight six-bit scales and eight six-bit minimums, see [`sub_scale_and_min`].
    pub sub_scales: [u8; 12],
    /// Two codes a byte.
    pub nibbles: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ4K>() == 144 && align_of::<BlockQ4K>() == 1);

/// Five-bit codes: as [`BlockQ4K`], and bit j of `high[i]` is the fifth bit of element i of sub-block j.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5K {
    /// f16, little endian.
    pub scale: [u8; 2],
    /// f16, little endian.
    pub min: [u8; 2],
    /// As in [`BlockQ4K`].
    pub sub_scales: [u8; 12],
    /// One bit of each of eight sub-blocks a byte.
    pub high: [u8; 32],
    /// Two codes a byte.
    pub nibbles: [u8; 128],
}
const _: () = assert!(size_of::<BlockQ5K>() == 176 && align_of::<BlockQ5K>() == 1);

/// Six-bit codes. Half h (128 elements) uses 64 bytes of `nibbles` and 32 of `high`; its elements
/// `32k + i` (k < 4) take the nibble `k / 2` of byte `32 (k % 2) + i` and the bits `2k ..` of high byte `i`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ6K {
    /// Two codes a byte.
    pub nibbles: [u8; 128],
    /// Four times two upper bits a byte.
    pub high: [u8; 64],
    /// One per 16 elements.
    pub sub_scales: [i8; 16],
    /// f16, little endian.
    pub scale: [u8; 2],
}
const _: () = assert!(size_of::<BlockQ6K>() == 210 && align_of::<BlockQ6K>() == 1);

/// The code of zero in Q6_K.
pub(crate) const Q6K_OFFSET: i32 = 32;

/// The six-bit scale and minimum of sub-block `j` (below 8), unpacked from their twelve bytes.
/// Source: `get_scale_min_k4` of ggml-quants.c.
pub(crate) fn sub_scale_and_min(bytes: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (bytes[j] & 63, bytes[j + 4] & 63)
    } else {
        let low = bytes[j + 4];
        ((low & 15) | (bytes[j - 4] >> 6 << 4), (low >> 4) | (bytes[j] >> 6 << 4))
    }
}

fn nibble_codes(nibbles: &[u8; 128], step: usize) -> [u8; CODES_PER_STEP] {
    let chunk = &nibbles.as_chunks::<32>().0[step / 2];
    if step.is_multiple_of(2) { chunk.map(|byte| byte & 0x0f) } else { chunk.map(|byte| byte >> 4) }
}

fn dequantize_with_min(
    codes: [u8; CODES_PER_STEP],
    scales: (f32, f32),
    sub_scale_and_min: (u8, u8),
    out: &mut [f32],
) {
    let scale = scales.0 * f32::from(sub_scale_and_min.0);
    let min = scales.1 * f32::from(sub_scale_and_min.1);
    for (y, code) in out.iter_mut().zip(codes) {
        *y = scale * f32::from(code) - min;
    }
}

impl RawBlock for BlockQ4K {
    const LEN: usize = 256;

    fn codes(&self, step: usize) -> [u8; CODES_PER_STEP] {
        nibble_codes(&self.nibbles, step)
    }

    fn dequantize(&self, out: &mut [f32]) {
        let scales = (half_to_f32(self.scale), half_to_f32(self.min));
        for (j, y) in out.chunks_exact_mut(CODES_PER_STEP).enumerate() {
            dequantize_with_min(self.codes(j), scales, sub_scale_and_min(&self.sub_scales, j), y);
        }
    }
}

impl RawBlock for BlockQ5K {
    const LEN: usize = 256;

    fn codes(&self, step: usize) -> [u8; CODES_PER_STEP] {
        let mut codes = nibble_codes(&self.nibbles, step);
        for (code, high) in codes.iter_mut().zip(self.high) {
            *code |= (high >> step & 1) << 4;
        }
        codes
    }

    fn dequantize(&self, out: &mut [f32]) {
        let scales = (half_to_f32(self.scale), half_to_f32(self.min));
        for (j, y) in out.chunks_exact_mut(CODES_PER_STEP).enumerate() {
            dequantize_with_min(self.codes(j), scales, sub_scale_and_min(&self.sub_scales, j), y);
        }
    }
}

impl RawBlock for BlockQ6K {
    const LEN: usize = 256;

    fn codes(&self, step: usize) -> [u8; CODES_PER_STEP] {
        let (half, k) = (step / 4, step % 4);
        let nibbles = &self.nibbles.as_chunks::<32>().0[half * 2 + k % 2];
        let high = &self.high.as_chunks::<32>().0[half];
        let mut codes = [0; CODES_PER_STEP];
        for i in 0..CODES_PER_STEP {
            let nibble = nibbles[i] >> (k / 2 * 4) & 0x0f;
            codes[i] = nibble | (high[i] >> (2 * k) & 3) << 4;
        }
        codes
    }

    fn dequantize(&self, out: &mut [f32]) {
        let scale = half_to_f32(self.scale);
        for (step, y) in out.chunks_exact_mut(CODES_PER_STEP).enumerate() {
            for (i, (y, code)) in y.iter_mut().zip(self.codes(step)).enumerate() {
                let sub_scale = f32::from(self.sub_scales[2 * step + i / 16]);
                *y = scale * sub_scale * (i32::from(code) - Q6K_OFFSET) as f32;
            }
        }
    }
}
