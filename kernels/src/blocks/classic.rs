//! The block types of 32 elements with one scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.
//!
//! Used by `dequantize` and by the packer of `cpu::matrix`. Codes are handed out unsigned; the value of an
//! element is `scale * (code - OFFSET)`, or `scale * code + min` for the `_1` types.

use super::{CODES_PER_STEP, RawBlock, half_to_f32};
use bytemuck::{Pod, Zeroable};

/// Signed bytes: `scale * codes[i]`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ8_0 {
    /// f16, little endian.
    pub scale: [u8; 2],
    /// Two's complement.
    pub codes: [u8; 32],
}
const _: () = assert!(size_of::<BlockQ8_0>() == 34 && align_of::<BlockQ8_0>() == 1);

/// Four-bit codes around 8: element i < 16 is the low nibble of byte i, element 16 + i its high nibble.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4_0 {
    /// f16, little endian.
    pub scale: [u8; 2],
    /// Two codes a byte.
    pub nibbles: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_0>() == 18 && align_of::<BlockQ4_0>() == 1);

/// Four-bit codes with a minimum; nibbles as in [`BlockQ4_0`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4_1 {
    /// f16, little endian.
    pub scale: [u8; 2],
    /// f16, little endian.
    pub min: [u8; 2],
    /// Two codes a byte.
    pub nibbles: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ4_1>() == 20 && align_of::<BlockQ4_1>() == 1);

/// Five-bit codes around 16: nibbles as in [`BlockQ4_0`], the fifth bit of element i is bit i of `high`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5_0 {
    /// f16, little endian.
    pub scale: [u8; 2],
    /// u32, little endian.
    pub high: [u8; 4],
    /// Two codes a byte.
    pub nibbles: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_0>() == 22 && align_of::<BlockQ5_0>() == 1);

/// Five-bit codes with a minimum; codes as in [`BlockQ5_0`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5_1 {
    /// f16, little endian.
    pub scale: [u8; 2],
    /// f16, little endian.
    pub min: [u8; 2],
    /// u32, little endian.
    pub high: [u8; 4],
    /// Two codes a byte.
    pub nibbles: [u8; 16],
}
const _: () = assert!(size_of::<BlockQ5_1>() == 24 && align_of::<BlockQ5_1>() == 1);

/// What is added to a Q8_0 byte so that it becomes an unsigned code.
pub(crate) const Q8_0_OFFSET: i32 = 128;
/// The code of zero in Q4_0.
pub(crate) const Q4_0_OFFSET: i32 = 8;
/// The code of zero in Q5_0.
pub(crate) const Q5_0_OFFSET: i32 = 16;

fn nibble_codes(nibbles: &[u8; 16]) -> [u8; CODES_PER_STEP] {
    let mut codes = [0; CODES_PER_STEP];
    for (i, byte) in nibbles.iter().enumerate() {
        codes[i] = byte & 0x0f;
        codes[16 + i] = byte >> 4;
    }
    codes
}

fn five_bit_codes(nibbles: &[u8; 16], high: [u8; 4]) -> [u8; CODES_PER_STEP] {
    let high = u32::from_le_bytes(high);
    let mut codes = nibble_codes(nibbles);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (((high >> i) & 1) as u8) << 4;
    }
    codes
}

fn centred(codes: [u8; CODES_PER_STEP], offset: i32, scale: [u8; 2], out: &mut [f32]) {
    let scale = half_to_f32(scale);
    for (y, code) in out.iter_mut().zip(codes) {
        *y = (i32::from(code) - offset) as f32 * scale;
    }
}

fn with_min(codes: [u8; CODES_PER_STEP], scale: [u8; 2], min: [u8; 2], out: &mut [f32]) {
    let (scale, min) = (half_to_f32(scale), half_to_f32(min));
    for (y, code) in out.iter_mut().zip(codes) {
        *y = f32::from(code) * scale + min;
    }
}

impl RawBlock for BlockQ8_0 {
    const LEN: usize = 32;

    fn codes(&self, _step: usize) -> [u8; CODES_PER_STEP] {
        self.codes.map(|byte| byte ^ 0x80)
    }

    fn dequantize(&self, out: &mut [f32]) {
        centred(self.codes(0), Q8_0_OFFSET, self.scale, out);
    }
}

impl RawBlock for BlockQ4_0 {
    const LEN: usize = 32;

    fn codes(&self, _step: usize) -> [u8; CODES_PER_STEP] {
        nibble_codes(&self.nibbles)
    }

    fn dequantize(&self, out: &mut [f32]) {
        centred(self.codes(0), Q4_0_OFFSET, self.scale, out);
    }
}

impl RawBlock for BlockQ4_1 {
    const LEN: usize = 32;

    fn codes(&self, _step: usize) -> [u8; CODES_PER_STEP] {
        nibble_codes(&self.nibbles)
    }

    fn dequantize(&self, out: &mut [f32]) {
        with_min(self.codes(0), self.scale, self.min, out);
    }
}

impl RawBlock for BlockQ5_0 {
    const LEN: usize = 32;

    fn codes(&self, _step: usize) -> [u8; CODES_PER_STEP] {
        five_bit_codes(&self.nibbles, self.high)
    }

    fn dequantize(&self, out: &mut [f32]) {
        centred(self.codes(0), Q5_0_OFFSET, self.scale, out);
    }
}

impl RawBlock for BlockQ5_1 {
    const LEN: usize = 32;

    fn codes(&self, _step: usize) -> [u8; CODES_PER_STEP] {
        five_bit_codes(&self.nibbles, self.high)
    }

    fn dequantize(&self, out: &mut [f32]) {
        with_min(self.codes(0), self.scale, self.min, out);
    }
}
