//! [`Lanes`] with AVX-512 VNNI: one register a vector, one instruction a quad of columns.

use super::lanes::Lanes;
use std::arch::x86_64::*;

/// Proof of AVX-512 F, BW, VL and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and VNNI (what [`crate::cpu::Isa::Avx512`] stands for).
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Avx512(())
    }
}

/// No instruction, but one that the compiler does not move past its like.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order(mut value: __m512i) -> __m512i {
    // SAFETY: it does nothing.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

// SAFETY of every block below: a value of `Avx512` exists only where its instructions do; loads and stores go
// through references to arrays of the width of the access.
impl Lanes for Avx512 {
    type Bytes = __m512i;
    type I32 = __m512i;
    type F32 = __m512;

    const TOKENS: usize = 8;

    #[inline(always)]
    fn load(self, vector: &[u8; 64]) -> __m512i {
        // SAFETY: 64 bytes behind a reference; see the impl.
        unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) }
    }

    #[inline(always)]
    fn low_nibbles(self, bytes: __m512i) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn high_nibbles(self, bytes: __m512i) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), _mm512_set1_epi8(0x0f)) }
    }

    #[inline(always)]
    fn or_bits(self, low: __m512i, high: __m512i, shift: i32, mask: u8) -> __m512i {
        // SAFETY: see the impl.
        unsafe {
            let count = _mm_cvtsi32_si128(shift.abs());
            let shifted =
                if shift >= 0 { _mm512_sll_epi16(high, count) } else { _mm512_srl_epi16(high, count) };
            // 0xf8: the first operand, or the second and the third.
            _mm512_ternarylogic_epi32::<0xf8>(low, shifted, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    fn dot4(self, sum: __m512i, codes: __m512i, activations: i32) -> __m512i {
        // SAFETY: see the impl. The sum of four products fits 18 bits; this form does not saturate.
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(activations)) }
    }

    #[inline(always)]
    fn start_around_128(self, negative_sum: i32) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_slli_epi32::<7>(_mm512_set1_epi32(negative_sum)) }
    }

    #[inline(always)]
    fn dot4_around_128(self, sum: __m512i, codes: __m512i, activations: i32) -> __m512i {
        self.dot4(sum, codes, activations)
    }

    #[inline(always)]
    fn dot2(self, sum: __m512i, pairs: &[[u8; 2]; 16], activations: i32) -> __m512i {
        // SAFETY: 32 bytes behind a reference; see the impl.
        unsafe {
            let pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256(pairs.as_ptr().cast()));
            _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(activations))
        }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn widen_u8(self, bytes: &[u8; 16]) -> __m512i {
        // SAFETY: 16 bytes behind a reference; see the impl.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn widen_i8(self, bytes: &[i8; 16]) -> __m512i {
        // SAFETY: 16 bytes behind a reference; see the impl.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: see the impl.
        unsafe { _mm512_add_epi32(sum, _mm512_mullo_epi32(a, b)) }
    }

    #[inline(always)]
    fn in_order(self, value: __m512i) -> __m512i {
        // SAFETY: see the impl.
        unsafe { in_order(value) }
    }

    #[inline(always)]
    fn to_f32(self, values: __m512i) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_cvtepi32_ps(values) }
    }

    #[inline(always)]
    fn halves(self, bits: &[u16; 16]) -> __m512 {
        // SAFETY: 32 bytes behind a reference; see the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load_f32(self, values: &[f32; 16]) -> __m512 {
        // SAFETY: 64 bytes behind a reference; see the impl.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    fn negated_fma(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_fnmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    fn store(self, values: __m512, out: &mut [f32; 16]) {
        // SAFETY: 64 bytes behind a reference; see the impl.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) }
    }

    #[inline(always)]
    fn prefetch<T>(self, line: &T, bytes: usize) {
        let ahead = std::ptr::from_ref(line).cast::<i8>().wrapping_add(bytes);
        // SAFETY: a prefetch never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) }
    }

    #[inline(always)]
    fn prefetch_once<T>(self, line: &T, bytes: usize) {
        let ahead = std::ptr::from_ref(line).cast::<i8>().wrapping_add(bytes);
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(ahead) }
    }
}
