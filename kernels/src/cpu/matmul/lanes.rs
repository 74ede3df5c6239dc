//! [`Lanes`]: sixteen 32-bit lanes, one output row each, as the instruction sets offer them.
//!
//! The arithmetic of the product is written once, in `tile`, over this trait; so the order of its f32
//! operations is the same on every instruction set by construction. Each method states an exact result, which
//! the implementations (`portable`, `avx2`, `avx512`) must give to the bit. A value of an implementing type
//! is the proof that the processor has its instructions.

/// Sixteen lanes of 32 bits.
pub(crate) trait Lanes: Copy {
    /// 64 bytes, four to a lane.
    type Bytes: Copy;
    /// 16 integers.
    type I32: Copy;
    /// 16 floats.
    type F32: Copy;

    /// Token rows whose sums the registers hold at once: 1, 2, 4 or 8.
    const TOKENS: usize;

    /// The bytes of `vector`.
    fn load(self, vector: &[u8; 64]) -> Self::Bytes;
    /// The low nibble of each byte.
    fn low_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;
    /// The high nibble of each byte, moved down.
    fn high_nibbles(self, bytes: Self::Bytes) -> Self::Bytes;
    /// `low | (high << shift) & mask` in each byte (`>> -shift` if negative). The mask must keep only bits that
    /// came from the same byte, so that wider shifts may be used.
    fn or_bits(self, low: Self::Bytes, high: Self::Bytes, shift: i32, mask: u8) -> Self::Bytes;

    /// `sum` plus the four unsigned `codes` (at most 63) of each lane times the four signed bytes (within
    /// ±127) of `activations`.
    fn dot4(self, sum: Self::I32, codes: Self::Bytes, activations: i32) -> Self::I32;
    /// What a sum of [`dot4_around_128`](Self::dot4_around_128) starts from, given minus the sum of all its
    /// activation codes.
    fn start_around_128(self, negative_sum: i32) -> Self::I32;
    /// As `dot4` for codes up to 255 which stand for `code - 128`, once the start is added.
    fn dot4_around_128(self, sum: Self::I32, codes: Self::Bytes, activations: i32) -> Self::I32;
    /// `sum` plus the two unsigned bytes of each lane times the two signed 16-bit halves of `activations`.
    fn dot2(self, sum: Self::I32, pairs: &[[u8; 2]; 16], activations: i32) -> Self::I32;

    /// `value` in every lane.
    fn splat_i32(self, value: i32) -> Self::I32;
    /// Unsigned bytes, widened.
    fn widen_u8(self, bytes: &[u8; 16]) -> Self::I32;
    /// Signed bytes, widened.
    fn widen_i8(self, bytes: &[i8; 16]) -> Self::I32;
    /// `sum + a * b`; the caller knows that it does not overflow.
    fn multiply_add(self, a: Self::I32, b: Self::I32, sum: Self::I32) -> Self::I32;

    /// `value` itself; the compiler leaves the order in which values pass through here alone.
    #[inline(always)]
    fn in_order(self, value: Self::I32) -> Self::I32 {
        value
    }

    /// Rounded to nearest even.
    fn to_f32(self, values: Self::I32) -> Self::F32;
    /// Half precision bits, widened.
    fn halves(self, bits: &[u16; 16]) -> Self::F32;
    /// `value` in every lane.
    fn splat(self, value: f32) -> Self::F32;
    /// The lanes of `values`.
    fn load_f32(self, values: &[f32; 16]) -> Self::F32;
    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + sum`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, sum: Self::F32) -> Self::F32;
    /// `-(a * b) + sum`, rounded once.
    fn negated_fma(self, a: Self::F32, b: Self::F32, sum: Self::F32) -> Self::F32;
    /// Writes the lanes.
    fn store(self, values: Self::F32, out: &mut [f32; 16]);

    /// Asks for the cache line `bytes` behind `line`; it need not be mapped.
    fn prefetch<T>(self, line: &T, bytes: usize);

    /// As [`prefetch`](Self::prefetch), for a line that is read once: it need not stay in any cache.
    #[inline(always)]
    fn prefetch_once<T>(self, line: &T, bytes: usize) {
        self.prefetch(line, bytes);
    }
}
