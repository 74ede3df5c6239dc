//! The vector operations as pairs of 256-bit registers.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd, as_lane};

/// Proof that the processor has AVX2, FMA and F16C: only [`launch`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Lanes 0 to 7 and 8 to 15.
#[derive(Clone, Copy)]
pub(super) struct Pair(__m256, __m256);

/// The same for integers of 32 bits, or of twice 16.
#[derive(Clone, Copy)]
pub(super) struct IntegerPair(__m256i, __m256i);

/// Runs `kernel` with these instructions enabled.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn launch<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Evaluates register intrinsics where an `Avx2` is at hand.
macro_rules! registers {
    ($e:expr) => {
        // SAFETY: the `Avx2` value in `self` proves that the instructions are present.
        unsafe { $e }
    };
}

/// The same intrinsic on both halves.
macro_rules! both {
    ($intrinsic:ident, $($arg:ident),+) => {
        registers!(Pair($intrinsic($($arg.0),+), $intrinsic($($arg.1),+)))
    };
}

#[inline(always)]
fn halves<T>(from: &[T; LANES]) -> (*const T, *const T) {
    (from.as_ptr(), from[8..].as_ptr())
}

impl Avx2 {
    /// 2^power for integral powers in −126..=127.
    #[inline(always)]
    fn power_of_two(self, power: __m256i) -> __m256 {
        registers!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
            power,
            _mm256_set1_epi32(127)
        ))))
    }

    #[inline(always)]
    fn scale_half(self, value: __m256, power: __m256) -> __m256 {
        let power = registers!(_mm256_cvtps_epi32(power));
        let first = registers!(_mm256_srai_epi32::<1>(power));
        let second = registers!(_mm256_sub_epi32(power, first));
        let (first, second) = (self.power_of_two(first), self.power_of_two(second));
        registers!(_mm256_mul_ps(_mm256_mul_ps(value, first), second))
    }
}

impl Simd for Avx2 {
    type F = Pair;
    type I = IntegerPair;
    type Pairs = IntegerPair;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Pair {
        registers!(Pair(_mm256_set1_ps(value), _mm256_set1_ps(value)))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Pair {
        let (low, high) = halves(from);
        // SAFETY: eight elements follow each pointer; the instructions are present.
        unsafe { Pair(_mm256_loadu_ps(low), _mm256_loadu_ps(high)) }
    }

    #[inline(always)]
    fn store(self, value: Pair, to: &mut [f32; LANES]) {
        let (low, high) = to.split_at_mut(8);
        // SAFETY: eight elements follow each pointer; the instructions are present.
        unsafe {
            _mm256_storeu_ps(low.as_mut_ptr(), value.0);
            _mm256_storeu_ps(high.as_mut_ptr(), value.1);
        }
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Pair {
        let (low, high) = halves(from);
        // SAFETY: sixteen bytes follow each pointer; the instructions are present.
        let (low, high) = unsafe { (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast())) };
        registers!(Pair(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)))
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Pair {
        let (low, high) = halves(from);
        // SAFETY: sixteen bytes follow each pointer; the instructions are present.
        let (low, high) = unsafe { (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast())) };
        let (low, high) = registers!((_mm256_cvtepu16_epi32(low), _mm256_cvtepu16_epi32(high)));
        let (low, high) = registers!((_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high)));
        registers!(Pair(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)))
    }

    #[inline(always)]
    fn store_f16(self, value: Pair, to: &mut [u16; LANES]) {
        let low = registers!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value.0));
        let high = registers!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value.1));
        let (to_low, to_high) = to.split_at_mut(8);
        // SAFETY: sixteen bytes follow each pointer; the instructions are present.
        unsafe {
            _mm_storeu_si128(to_low.as_mut_ptr().cast(), low);
            _mm_storeu_si128(to_high.as_mut_ptr().cast(), high);
        }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        both!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn round(self, value: Pair) -> Pair {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        registers!(Pair(_mm256_round_ps::<NEAREST>(value.0), _mm256_round_ps::<NEAREST>(value.1)))
    }

    #[inline(always)]
    fn scale_by_power(self, value: Pair, power: Pair) -> Pair {
        Pair(self.scale_half(value.0, power.0), self.scale_half(value.1, power.1))
    }

    #[inline(always)]
    fn select_less(self, a: Pair, b: Pair, yes: Pair, no: Pair) -> Pair {
        let low = registers!(_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0));
        let high = registers!(_mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1));
        registers!(Pair(_mm256_blendv_ps(no.0, yes.0, low), _mm256_blendv_ps(no.1, yes.1, high)))
    }

    #[inline(always)]
    fn sum(self, value: Pair) -> f32 {
        let eight = registers!(_mm256_add_ps(value.0, value.1));
        let (low, high) = registers!((_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
        let four = registers!(_mm_add_ps(low, high));
        let two = registers!(_mm_add_ps(four, _mm_movehl_ps(four, four)));
        registers!(_mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))))
    }

    #[inline(always)]
    fn highest(self, value: Pair) -> f32 {
        let eight = registers!(_mm256_max_ps(value.0, value.1));
        let (low, high) = registers!((_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
        let four = registers!(_mm_max_ps(low, high));
        let two = registers!(_mm_max_ps(four, _mm_movehl_ps(four, four)));
        registers!(_mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two))))
    }

    #[inline(always)]
    fn zero_integers(self) -> IntegerPair {
        registers!(IntegerPair(_mm256_setzero_si256(), _mm256_setzero_si256()))
    }

    #[inline(always)]
    fn load_pairs(self, from: &[[i8; 2]; LANES]) -> IntegerPair {
        let (low, high) = halves(from);
        // SAFETY: sixteen bytes follow each pointer; the instructions are present.
        let (low, high) = unsafe { (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast())) };
        registers!(IntegerPair(_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)))
    }

    #[inline(always)]
    fn dot_pairs(self, a: IntegerPair, b: [i16; 2], sum: IntegerPair) -> IntegerPair {
        let b = registers!(_mm256_set1_epi32(as_lane(b)));
        registers!(IntegerPair(
            _mm256_add_epi32(sum.0, _mm256_madd_epi16(a.0, b)),
            _mm256_add_epi32(sum.1, _mm256_madd_epi16(a.1, b))
        ))
    }

    #[inline(always)]
    fn floats(self, integers: IntegerPair) -> Pair {
        registers!(Pair(_mm256_cvtepi32_ps(integers.0), _mm256_cvtepi32_ps(integers.1)))
    }

    #[inline(always)]
    fn store_i16(self, value: Pair, to: &mut [i16; LANES]) {
        let (low, high) = registers!((_mm256_cvtps_epi32(value.0), _mm256_cvtps_epi32(value.1)));
        // Packing works inside each half of a register; the permutation puts the quarters in order.
        let packed = registers!(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high)));
        // SAFETY: 32 bytes follow the pointer; the instructions are present.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), packed) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        // SAFETY: a hint; it reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) }
    }
}
