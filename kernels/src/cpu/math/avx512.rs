//! The vector operations as 512-bit registers.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd, as_lane};

/// Proof that the processor has AVX-512 F, BW, VL and VNNI: only [`launch`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Runs `kernel` with these instructions enabled.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, VNNI, and AVX2, FMA, F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn launch<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// Evaluates register intrinsics where an `Avx512` is at hand.
macro_rules! registers {
    ($e:expr) => {
        // SAFETY: the `Avx512` value in `self` proves that the instructions are present.
        unsafe { $e }
    };
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type Pairs = __m512i;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        registers!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        // SAFETY: sixteen elements follow the pointer; the instructions are present.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32; LANES]) {
        // SAFETY: sixteen elements follow the pointer; the instructions are present.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        // SAFETY: 32 bytes follow the pointer; the instructions are present.
        let halves = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        registers!(_mm512_cvtph_ps(halves))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        // SAFETY: 32 bytes follow the pointer; the instructions are present.
        let halves = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        registers!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))))
    }

    #[inline(always)]
    fn store_f16(self, value: __m512, to: &mut [u16; LANES]) {
        let halves = registers!(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value));
        // SAFETY: 32 bytes follow the pointer; the instructions are present.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), halves) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        registers!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        registers!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, value: __m512) -> __m512 {
        registers!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value))
    }

    #[inline(always)]
    fn scale_by_power(self, value: __m512, power: __m512) -> __m512 {
        registers!(_mm512_scalef_ps(value, power))
    }

    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        registers!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes))
    }

    #[inline(always)]
    fn sum(self, value: __m512) -> f32 {
        let high = registers!(_mm512_castps_pd(value));
        let high = registers!(_mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(high)));
        let eight = registers!(_mm256_add_ps(_mm512_castps512_ps256(value), high));
        let (low, high) = registers!((_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
        let four = registers!(_mm_add_ps(low, high));
        let two = registers!(_mm_add_ps(four, _mm_movehl_ps(four, four)));
        registers!(_mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))))
    }

    #[inline(always)]
    fn highest(self, value: __m512) -> f32 {
        let high = registers!(_mm512_castps_pd(value));
        let high = registers!(_mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(high)));
        let eight = registers!(_mm256_max_ps(_mm512_castps512_ps256(value), high));
        let (low, high) = registers!((_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
        let four = registers!(_mm_max_ps(low, high));
        let two = registers!(_mm_max_ps(four, _mm_movehl_ps(four, four)));
        registers!(_mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two))))
    }

    #[inline(always)]
    fn zero_integers(self) -> __m512i {
        registers!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn load_pairs(self, from: &[[i8; 2]; LANES]) -> __m512i {
        // SAFETY: 32 bytes follow the pointer; the instructions are present.
        let bytes = unsafe { _mm256_loadu_si256(from.as_ptr().cast()) };
        registers!(_mm512_cvtepi8_epi16(bytes))
    }

    #[inline(always)]
    fn dot_pairs(self, a: __m512i, b: [i16; 2], sum: __m512i) -> __m512i {
        registers!(_mm512_dpwssd_epi32(sum, a, _mm512_set1_epi32(as_lane(b))))
    }

    #[inline(always)]
    fn floats(self, integers: __m512i) -> __m512 {
        registers!(_mm512_cvtepi32_ps(integers))
    }

    #[inline(always)]
    fn store_i16(self, value: __m512, to: &mut [i16; LANES]) {
        let halves = registers!(_mm512_cvtepi32_epi16(_mm512_cvtps_epi32(value)));
        // SAFETY: 32 bytes follow the pointer; the instructions are present.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), halves) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        // SAFETY: a hint; it reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) }
    }
}
