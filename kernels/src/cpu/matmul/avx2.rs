//! [`Lanes`] with AVX2: two registers a vector, rows 0 to 7 and rows 8 to 15.

use super::lanes::Lanes;
use std::arch::x86_64::*;

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA and F16C (what [`crate::cpu::Isa::Avx2`] stands for).
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Avx2(())
    }
}

type Ints = [__m256i; 2];
type Floats = [__m256; 2];

/// `sum + codes * x` over four bytes a lane, through 16-bit pair sums.
#[inline(always)]
fn dot4_half(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    // SAFETY: called from the methods of `Avx2` only.
    unsafe {
        let pairs = _mm256_maddubs_epi16(codes, x);
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

// SAFETY of every block below: a value of `Avx2` exists only where its instructions do; loads and stores go
// through references to arrays of the width of the access.
impl Lanes for Avx2 {
    type Bytes = Ints;
    type I32 = Ints;
    type F32 = Floats;

    const TOKENS: usize = 2;

    #[inline(always)]
    fn load(self, vector: &[u8; 64]) -> Ints {
        let halves: &[[u8; 32]; 2] = bytemuck::cast_ref(vector);
        // SAFETY: twice 32 bytes behind a reference; see the impl.
        unsafe {
            [_mm256_loadu_si256(halves[0].as_ptr().cast()), _mm256_loadu_si256(halves[1].as_ptr().cast())]
        }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: Ints) -> Ints {
        // SAFETY: see the impl.
        unsafe {
            let mask = _mm256_set1_epi8(0x0f);
            [_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)]
        }
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: Ints) -> Ints {
        // SAFETY: see the impl.
        self.low_nibbles(unsafe { [_mm256_srli_epi16::<4>(bytes[0]), _mm256_srli_epi16::<4>(bytes[1])] })
    }

    #[inline(always)]
    fn or_bits(self, low: Ints, high: Ints, shift: i32, mask: u8) -> Ints {
        // SAFETY: see the impl.
        unsafe {
            let count = _mm_cvtsi32_si128(shift.abs());
            let mask = _mm256_set1_epi8(mask as i8);
            let mut out = low;
            for h in 0..2 {
                let shifted = if shift >= 0 {
                    _mm256_sll_epi16(high[h], count)
                } else {
                    _mm256_srl_epi16(high[h], count)
                };
                out[h] = _mm256_or_si256(low[h], _mm256_and_si256(shifted, mask));
            }
            out
        }
    }

    /// No saturation: a 16-bit pair sum is at most 2 * 63 * 127 = 16,002.
    #[inline(always)]
    fn dot4(self, sum: Ints, codes: Ints, activations: i32) -> Ints {
        // SAFETY: see the impl.
        let x = unsafe { _mm256_set1_epi32(activations) };
        [dot4_half(sum[0], codes[0], x), dot4_half(sum[1], codes[1], x)]
    }

    #[inline(always)]
    fn start_around_128(self, _negative_sum: i32) -> Ints {
        self.splat_i32(0)
    }

    /// Codes up to 255 would saturate the pair sums, so the signed values `code - 128` are multiplied: their
    /// magnitudes (at most 128) with the activations carrying the sign. No saturation: a pair sum is at most
    /// 2 * 128 * 127 = 32,512. An activation is never -128, so that negating it is exact.
    #[inline(always)]
    fn dot4_around_128(self, sum: Ints, codes: Ints, activations: i32) -> Ints {
        let mut out = sum;
        for h in 0..2 {
            // SAFETY: see the impl.
            unsafe {
                let values = _mm256_xor_si256(codes[h], _mm256_set1_epi8(-128));
                let signed = _mm256_sign_epi8(_mm256_set1_epi32(activations), values);
                out[h] = dot4_half(sum[h], _mm256_abs_epi8(values), signed);
            }
        }
        out
    }

    #[inline(always)]
    fn dot2(self, sum: Ints, pairs: &[[u8; 2]; 16], activations: i32) -> Ints {
        let halves: &[[u8; 16]; 2] = bytemuck::cast_ref(pairs);
        let mut out = sum;
        for h in 0..2 {
            // SAFETY: 16 bytes behind a reference; see the impl.
            unsafe {
                let pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(halves[h].as_ptr().cast()));
                let products = _mm256_madd_epi16(pairs, _mm256_set1_epi32(activations));
                out[h] = _mm256_add_epi32(sum[h], products);
            }
        }
        out
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> Ints {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn widen_u8(self, bytes: &[u8; 16]) -> Ints {
        // SAFETY: 16 bytes behind a reference; see the impl.
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }

    #[inline(always)]
    fn widen_i8(self, bytes: &[i8; 16]) -> Ints {
        // SAFETY: 16 bytes behind a reference; see the impl.
        unsafe {
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }

    #[inline(always)]
    fn multiply_add(self, a: Ints, b: Ints, sum: Ints) -> Ints {
        let mut out = sum;
        for h in 0..2 {
            // SAFETY: see the impl.
            out[h] = unsafe { _mm256_add_epi32(sum[h], _mm256_mullo_epi32(a[h], b[h])) };
        }
        out
    }

    #[inline(always)]
    fn to_f32(self, values: Ints) -> Floats {
        // SAFETY: see the impl.
        unsafe { [_mm256_cvtepi32_ps(values[0]), _mm256_cvtepi32_ps(values[1])] }
    }

    #[inline(always)]
    fn halves(self, bits: &[u16; 16]) -> Floats {
        let halves: &[[u16; 8]; 2] = bytemuck::cast_ref(bits);
        // SAFETY: twice 16 bytes behind a reference; see the impl.
        unsafe {
            let low = _mm_loadu_si128(halves[0].as_ptr().cast());
            let high = _mm_loadu_si128(halves[1].as_ptr().cast());
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load_f32(self, values: &[f32; 16]) -> Floats {
        let (low, high) = values.split_at(8);
        // SAFETY: twice 32 bytes behind references; see the impl.
        unsafe { [_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())] }
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, sum: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], sum[0]), _mm256_fmadd_ps(a[1], b[1], sum[1])] }
    }

    #[inline(always)]
    fn negated_fma(self, a: Floats, b: Floats, sum: Floats) -> Floats {
        // SAFETY: see the impl.
        unsafe { [_mm256_fnmadd_ps(a[0], b[0], sum[0]), _mm256_fnmadd_ps(a[1], b[1], sum[1])] }
    }

    #[inline(always)]
    fn store(self, values: Floats, out: &mut [f32; 16]) {
        let (low, high) = out.split_at_mut(8);
        // SAFETY: twice 32 bytes behind references; see the impl.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), values[0]);
            _mm256_storeu_ps(high.as_mut_ptr(), values[1]);
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, line: &T, bytes: usize) {
        let ahead = std::ptr::from_ref(line).cast::<i8>().wrapping_add(bytes);
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) }
    }
}
