//! Gated activations, softmax and argmax against f64, on every instruction set.

#![expect(clippy::unwrap_used, reason = "a failed call fails the test")]

mod sample;

use kernels::cpu::{Cpu, Gate, Isa, argmax, gated_activation, gated_silu, softmax_in_place};
use proptest::prelude::*;
use sample::{assert_close, assert_same_bits, floats, same_everywhere};

/// erf by its Maclaurin series, 1 beyond 5 (within 2e-12).
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..150 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn exact(kind: Gate, x: f64) -> f64 {
    match kind {
        Gate::Silu => x / (1.0 + (-x).exp()),
        Gate::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Gate::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

fn check(kind: Gate, gate: &[f32]) {
    let up = floats(9, gate.len());
    let out = same_everywhere(|cpu| {
        let mut out = vec![f32::NAN; gate.len()];
        gated_activation(cpu, kind, gate, &up, &mut out).unwrap();
        out
    });
    let exact: Vec<f64> =
        gate.iter().zip(&up).map(|(&x, &up)| exact(kind, f64::from(x)) * f64::from(up)).collect();
    // Silu and tanh-GELU keep their relative accuracy in the tails as far as e^x does.
    assert_close(&out, &exact, |i| match kind {
        Gate::Silu => 4e-7 * exact[i].abs() + 1e-37,
        _ => 4e-7 * f64::from(gate[i]).abs() + 1e-37,
    });
}

const KINDS: [Gate; 3] = [Gate::Silu, Gate::GeluTanh, Gate::GeluErf];

#[test]
fn gates_match_f64_over_their_range() {
    for kind in KINDS {
        let gate: Vec<f32> = (0..40_001).map(|i| (i - 20_000) as f32 / 1000.0).collect();
        check(kind, &gate);
    }
    let far = [-1e30, -200.0, -88.0, -60.0, -1e-30, 0.0, 1e-30, 60.0, 88.0, 200.0, 1e30];
    check(Gate::Silu, &far);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_length_is_served(len in 0usize..9000, seed in 0u64..1000) {
        let gate: Vec<f32> = floats(seed, len).iter().map(|x| x * 8.0).collect();
        for kind in KINDS {
            check(kind, &gate);
        }
    }

    #[test]
    fn softmax_sums_to_one_and_matches_f64(len in 1usize..600, seed in 0u64..1000) {
        let x: Vec<f32> = floats(seed, len).iter().map(|x| x * 20.0).collect();
        let out = same_everywhere(|cpu| {
            let mut out = x.clone();
            softmax_in_place(cpu, &mut out);
            out
        });
        let highest = x.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
        let powers: Vec<f64> = x.iter().map(|&x| (f64::from(x) - f64::from(highest)).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let exact: Vec<f64> = powers.iter().map(|power| power / sum).collect();
        // The difference to the maximum is rounded to f32 first: up to 40 in units of 2^-19.
        assert_close(&out, &exact, |i| 3e-6 * exact[i]);
    }

    #[test]
    fn argmax_is_the_first_of_the_greatest(values in prop::collection::vec(-5i8..5, 1..200)) {
        let x: Vec<f32> = values.iter().map(|&value| f32::from(value)).collect();
        let highest = *values.iter().max().unwrap();
        let first = values.iter().position(|&value| value == highest).unwrap();
        for cpu in sample::contexts() {
            prop_assert_eq!(argmax(&cpu, &x), Some((first, f32::from(highest))));
        }
    }
}

#[test]
fn numbers_that_are_none_are_passed_over_or_kept() {
    for cpu in sample::contexts() {
        let mut x = vec![f32::NAN; 40];
        assert_eq!(argmax(&cpu, &x), None);
        (x[17], x[38]) = (f32::NEG_INFINITY, -3.0);
        assert_eq!(argmax(&cpu, &x), Some((38, -3.0)));
        assert_eq!(argmax(&cpu, &[]), None);
        let mut out = vec![0.0; 40];
        gated_silu(&cpu, &x, &[1.0; 40], &mut out).unwrap();
        assert!(out[0].is_nan() && !out[38].is_nan());
        let mut x = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0];
        softmax_in_place(&cpu, &mut x);
        assert_same_bits(&x, &[0.0, 0.5, 0.0, 0.5], &cpu);
        softmax_in_place(&cpu, &mut []);
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let cpu = Cpu::new(Isa::Portable, 1).unwrap();
    assert!(gated_silu(&cpu, &[0.0; 4], &[0.0; 3], &mut [0.0; 4]).is_err());
    assert!(gated_silu(&cpu, &[0.0; 4], &[0.0; 4], &mut [0.0; 5]).is_err());
}
