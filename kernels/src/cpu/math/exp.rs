//! Exponential functions over vectors, with fixed polynomials so that no libm decides a bit.

use super::Simd;

/// log2(e), and ln 2 as a sum of two f32; the reduction by the first is exact with a fused multiply-add.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN_2_HIGH: f32 = std::f32::consts::LN_2;
const LN_2_LOW: f32 = -1.904_654_2e-9;
/// Beyond these e^x is infinity or zero in f32; the exponent arithmetic holds between them.
const HIGHEST: f32 = 89.0;
const LOWEST: f32 = -104.0;
/// Minimax coefficients of (e^r − 1 − r) / r² for |r| ≤ ln 2 / 2, lowest power first, fitted by iteratively
/// reweighted least squares; they alone err by at most 0.06 units in the last place of e^r.
const COEFFICIENTS: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_39, 0.008_368_745, 0.001_381_453_8];

/// e^x, at most 1.5 units in the last place off (subnormal results included).
///
/// e^−∞ = 0, e^∞ = ∞, not-a-number stays not-a-number, and e^0 = 1 exactly.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The operand order keeps a NaN.
    let x = s.min(s.splat(HIGHEST), s.max(s.splat(LOWEST), x));
    let power = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.fma(power, s.splat(-LN_2_HIGH), x);
    let r = s.fma(power, s.splat(-LN_2_LOW), r);
    let mut p = s.splat(COEFFICIENTS[4]);
    for &c in COEFFICIENTS[..4].iter().rev() {
        p = s.fma(p, r, s.splat(c));
    }
    let minus_one = s.fma(s.mul(r, r), p, r);
    s.scale_by_power(s.add(minus_one, s.splat(1.0)), power)
}

/// tanh x = 1 − 2 / (e^2x + 1), at most 2e-7 off in absolute terms.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let grown = exp(s, s.add(x, x));
    s.sub(one, s.div(s.splat(2.0), s.add(grown, one)))
}

/// Minimax coefficients of erf(x) / x in x² for |x| ≤ 1, lowest power first, fitted as those of e^x.
const ERF_COEFFICIENTS: [f32; 7] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    -0.376_126_26,
    0.112_836,
    -0.026_854_452,
    0.005_189_549,
    -0.000_802_095_5,
    0.000_078_894_77,
];

/// erf x, at most 3e-7 off in absolute terms: a polynomial up to 1, beyond it Abramowitz & Stegun 7.1.26.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let square = s.mul(x, x);
    let mut near = s.splat(ERF_COEFFICIENTS[6]);
    for &c in ERF_COEFFICIENTS[..6].iter().rev() {
        near = s.fma(near, square, s.splat(c));
    }
    let size = s.select_less(x, zero, s.sub(zero, x), x);
    let t = s.div(one, s.fma(s.splat(0.327_591_1), size, one));
    let p = s.fma(s.splat(1.061_405_4), t, s.splat(-1.453_152));
    let p = s.fma(p, t, s.splat(1.421_413_7));
    let p = s.fma(p, t, s.splat(-0.284_496_74));
    let p = s.mul(s.fma(p, t, s.splat(0.254_829_6)), t);
    let far = s.sub(one, s.mul(p, exp(s, s.sub(zero, square))));
    let far = s.select_less(x, zero, s.sub(zero, far), far);
    s.select_less(size, one, s.mul(near, x), far)
}
