//! [`Lanes`] in plain Rust: the meaning of every operation, and the path of processors without AVX2.

use super::lanes::Lanes;

/// Needs nothing of the processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip<T: Copy, U: Copy, const N: usize>(a: [T; N], b: [U; N], f: impl Fn(T, U) -> T) -> [T; N] {
    let mut out = a;
    for (out, b) in out.iter_mut().zip(b) {
        *out = f(*out, b);
    }
    out
}

impl Lanes for Portable {
    type Bytes = [u8; 64];
    type I32 = [i32; 16];
    type F32 = [f32; 16];

    const TOKENS: usize = 1;

    #[inline(always)]
    fn load(self, vector: &[u8; 64]) -> [u8; 64] {
        *vector
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: [u8; 64]) -> [u8; 64] {
        bytes.map(|byte| byte & 0x0f)
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: [u8; 64]) -> [u8; 64] {
        bytes.map(|byte| byte >> 4)
    }

    #[inline(always)]
    fn or_bits(self, low: [u8; 64], high: [u8; 64], shift: i32, mask: u8) -> [u8; 64] {
        let shifted =
            if shift >= 0 { high.map(|byte| byte << shift) } else { high.map(|byte| byte >> -shift) };
        zip(low, shifted, |low, high| low | high & mask)
    }

    #[inline(always)]
    fn dot4(self, sum: [i32; 16], codes: [u8; 64], activations: i32) -> [i32; 16] {
        let x = activations.to_ne_bytes().map(|byte| i32::from(byte as i8));
        let mut out = sum;
        for (lane, codes) in out.iter_mut().zip(codes.as_chunks::<4>().0) {
            let products = zip(x, *codes, |x, code| x * i32::from(code));
            *lane += products.iter().sum::<i32>();
        }
        out
    }

    #[inline(always)]
    fn start_around_128(self, negative_sum: i32) -> [i32; 16] {
        [negative_sum * 128; 16]
    }

    #[inline(always)]
    fn dot4_around_128(self, sum: [i32; 16], codes: [u8; 64], activations: i32) -> [i32; 16] {
        self.dot4(sum, codes, activations)
    }

    #[inline(always)]
    fn dot2(self, sum: [i32; 16], pairs: &[[u8; 2]; 16], activations: i32) -> [i32; 16] {
        let [x0, x1]: [i16; 2] = bytemuck::cast(activations);
        zip(sum, *pairs, |sum, [a, b]| sum + i32::from(x0) * i32::from(a) + i32::from(x1) * i32::from(b))
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> [i32; 16] {
        [value; 16]
    }

    #[inline(always)]
    fn widen_u8(self, bytes: &[u8; 16]) -> [i32; 16] {
        bytes.map(i32::from)
    }

    #[inline(always)]
    fn widen_i8(self, bytes: &[i8; 16]) -> [i32; 16] {
        bytes.map(i32::from)
    }

    #[inline(always)]
    fn multiply_add(self, a: [i32; 16], b: [i32; 16], sum: [i32; 16]) -> [i32; 16] {
        zip(sum, zip(a, b, |a, b| a * b), |sum, product| sum + product)
    }

    #[inline(always)]
    fn to_f32(self, values: [i32; 16]) -> [f32; 16] {
        values.map(|value| value as f32)
    }

    #[inline(always)]
    fn halves(self, bits: &[u16; 16]) -> [f32; 16] {
        bits.map(|bits| half::f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 16] {
        [value; 16]
    }

    #[inline(always)]
    fn load_f32(self, values: &[f32; 16]) -> [f32; 16] {
        *values
    }

    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn fma(self, a: [f32; 16], b: [f32; 16], sum: [f32; 16]) -> [f32; 16] {
        let mut out = sum;
        for i in 0..16 {
            out[i] = a[i].mul_add(b[i], out[i]);
        }
        out
    }

    #[inline(always)]
    fn negated_fma(self, a: [f32; 16], b: [f32; 16], sum: [f32; 16]) -> [f32; 16] {
        self.fma(a.map(|a| -a), b, sum)
    }

    #[inline(always)]
    fn store(self, values: [f32; 16], out: &mut [f32; 16]) {
        *out = values;
    }

    #[inline(always)]
    fn prefetch<T>(self, _line: &T, _bytes: usize) {}
}
