//! Passes over one whole row of logits: arg max, sum of exponentials, the most likely few.
//!
//! Written as plain lanes so that the compiler vectorizes them. The exponential is ours and not the C library's,
//! whose last bit depends on the processor: the same logits must give the same token on every worker (P3).

use super::SampleError;
use shared::ids::TokenId;

/// Independent accumulators of a pass; the sums' order depends on it, so it is part of the result.
const LANES: usize = 16;
/// Logits scanned between two looks at the running maximum, a compromise of both passes of [`arg_max`].
const SCAN_BLOCK: usize = 1024;
/// Logits summed in f32 before the sum is carried on in f64.
pub(super) const SUM_BLOCK: usize = 256;

/// The largest logit and its position; the lower position wins a tie.
/// Errors: a NaN or positive infinity anywhere, or nothing above negative infinity.
pub(super) fn arg_max(row: &[f32]) -> Result<(usize, f32), SampleError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (number, block) in row.chunks(SCAN_BLOCK).enumerate() {
        let (max, has_nan) = block_max(block);
        if has_nan {
            return Err(not_finite(row));
        }
        if max > best.1 {
            best = (number, max);
        }
    }
    let (number, max) = best;
    if max == f32::INFINITY {
        return Err(not_finite(row));
    }
    let start = number * SCAN_BLOCK;
    match row.get(start..).and_then(|rest| rest.iter().position(|&x| x == max)) {
        Some(offset) if max > f32::NEG_INFINITY => Ok((start + offset, max)),
        _ => Err(SampleError::NothingLeft),
    }
}

fn block_max(block: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let mut chunks = block.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            let x = chunk[lane];
            max[lane] = if x > max[lane] { x } else { max[lane] };
            nan[lane] |= x.is_nan();
        }
    }
    let tail = chunks.remainder();
    let largest = max.iter().chain(tail).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    (largest, nan.contains(&true) || tail.iter().any(|x| x.is_nan()))
}

fn not_finite(row: &[f32]) -> SampleError {
    let position = row.iter().position(|x| x.is_nan() || *x == f32::INFINITY).unwrap_or(0);
    SampleError::NotFinite {
        token: position as TokenId,
        value: row.get(position).copied().unwrap_or(f32::NAN),
    }
}

/// The natural logarithm of the sum of `exp(logit)`, given the row's maximum.
pub(super) fn log_sum_exp(row: &[f32], max: f32) -> f64 {
    let sum: f64 = row.chunks(SUM_BLOCK).map(|block| sum_exp(block, max, 1.0)).sum();
    f64::from(max) + sum.ln()
}

/// The sum of `exp((logit - max) * scale)` over at most [`SUM_BLOCK`] logits none of which is above `max`.
/// Within the block f32 is enough: a lane adds 16 numbers of at most 1. Callers add blocks in f64.
pub(super) fn sum_exp(block: &[f32], max: f32, scale: f32) -> f64 {
    let mut sums = [0f32; LANES];
    let mut chunks = block.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            sums[lane] += exp_nonpositive((chunk[lane] - max) * scale);
        }
    }
    let tail: f64 = chunks.remainder().iter().map(|x| f64::from(exp_nonpositive((x - max) * scale))).sum();
    sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() + tail
}

/// The `count` largest logits with their tokens, largest first, the lower token first among equals.
pub(super) fn most_likely(row: &[f32], count: usize) -> Vec<(TokenId, f32)> {
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return top;
    }
    let mut bar = f32::NEG_INFINITY;
    for (token, &logit) in (0..).zip(row) {
        if top.len() == count && logit <= bar {
            continue;
        }
        let place = top.partition_point(|&(_, other)| other >= logit);
        top.insert(place, (token, logit));
        top.truncate(count);
        if top.len() == count {
            bar = top[count - 1].1;
        }
    }
    top
}

/// e to the power `x` for `x` <= 0 (0 below -87, where f32 would leave its normal range), within 2e-7 relative.
/// Source: the classic range reduction by multiples of ln 2 with a polynomial on ±ln(2)/2; coefficients from
/// Cephes' `expf` (Moshier).
#[inline]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with trailing zeros so that its multiples are exact.
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let whole = shifted - ROUNDER;
    let r = clamped - whole * LN2[0] - whole * LN2[1];
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127) << 23;
    if x > -87.0 { mantissa * f32::from_bits(exponent) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponential_is_accurate_over_its_range() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
            assert!(x <= -87.0 || error < 2e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn arg_max_refuses_what_is_no_distribution() {
        let check = |row: &[f32], expected| assert_eq!(arg_max(row).map(|(i, _)| i).ok(), expected);
        check(&[], None);
        check(&[f32::NEG_INFINITY; 40], None);
        check(&[1.0, f32::NAN], None);
        check(&[1.0, f32::INFINITY, 2.0], None);
        check(&[f32::NEG_INFINITY, -3.0, -3.0], Some(1));
        let mut row = vec![0.0; 5000];
        row[4321] = f32::NAN;
        assert_eq!(arg_max(&row).err().map(|e| e.to_string()), Some("logit of token 4321 is NaN".to_owned()));
    }

    proptest! {
        #[test]
        fn arg_max_and_most_likely_agree_with_a_sort(row in prop::collection::vec(-9i8..9, 1..3000), k in 0usize..21) {
            let row: Vec<f32> = row.into_iter().map(f32::from).collect();
            let mut sorted: Vec<(TokenId, f32)> = (0..).zip(row.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            prop_assert_eq!(arg_max(&row).unwrap(), (sorted[0].0 as usize, sorted[0].1));
            sorted.truncate(k);
            prop_assert_eq!(most_likely(&row, k), sorted);
        }

        #[test]
        fn log_sum_exp_is_exact_enough(row in prop::collection::vec(-30f32..30.0, 1..200)) {
            let max = arg_max(&row).unwrap().1;
            let exact = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            prop_assert!((log_sum_exp(&row, max) - exact).abs() < 1e-6);
        }
    }
}
