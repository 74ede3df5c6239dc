//! Root-mean-square norm and additions against f64, on every instruction set, alone and in a batch.

#![expect(clippy::unwrap_used, reason = "a failed call fails the test")]

mod sample;

use kernels::KernelError;
use kernels::cpu::{Cpu, Isa, add_bias_in_place, add_in_place, rms_norm, rms_norm_in_place};
use proptest::prelude::*;
use sample::{assert_close, assert_same_bits, floats, same_everywhere};

fn exact_norm(x: &[f32], gain: &[f32], eps: f32) -> Vec<f64> {
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
    let (gain, mut out) = (wide(gain), Vec::new());
    for row in x.chunks_exact(gain.len()).map(wide) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / gain.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(row.iter().zip(&gain).map(|(x, gain)| x * scale * gain));
    }
    out
}

fn check(rows: usize, dim: usize, seed: u64) {
    let (x, gain, eps) = (floats(seed, rows * dim), floats(seed + 1, dim), 1e-5);
    let norm = |cpu: &Cpu, x: &[f32]| {
        let mut out = vec![f32::NAN; x.len()];
        rms_norm(cpu, x, &gain, eps, &mut out).unwrap();
        out
    };
    let out = same_everywhere(|cpu| norm(cpu, &x));
    let exact = exact_norm(&x, &gain, eps);
    assert_close(&out, &exact, |i| 1e-6 * exact[i].abs() + 1e-12);
    let cpu = Cpu::new(Isa::detect(), 2).unwrap();
    for row in 0..rows {
        let range = row * dim..(row + 1) * dim;
        assert_same_bits(&norm(&cpu, &x[range.clone()]), &out[range], &"row alone");
    }
    let mut in_place = x;
    rms_norm_in_place(&cpu, &mut in_place, &gain, eps).unwrap();
    assert_same_bits(&in_place, &out, &"in place");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_norm_is_exact_to_a_millionth_and_independent_of_the_batch(rows in 1usize..12, dim in 1usize..400, seed: u64) {
        check(rows, dim, seed % 1000);
    }
}

#[test]
fn model_sized_rows_are_normalized() {
    check(64, 128, 1);
    check(3, 4096, 2);
    check(130, 64, 3);
}

#[test]
fn additions_are_exact_everywhere() {
    for (rows, dim) in [(1, 1), (3, 17), (5, 4096), (40, 100)] {
        let (x, y, bias) = (floats(1, rows * dim), floats(2, rows * dim), floats(3, dim));
        let sums = same_everywhere(|cpu| {
            let mut sums = x.clone();
            add_in_place(cpu, &mut sums, &y).unwrap();
            add_bias_in_place(cpu, &mut sums, &bias).unwrap();
            sums
        });
        let expected: Vec<f32> = (0..rows * dim).map(|i| x[i] + y[i] + bias[i % dim]).collect();
        assert_same_bits(&sums, &expected, &(rows, dim));
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let cpu = Cpu::new(Isa::Portable, 1).unwrap();
    let mut out = [0.0; 8];
    let wrong = rms_norm(&cpu, &[0.0; 9], &[1.0; 4], 1e-5, &mut out).unwrap_err();
    assert_eq!(wrong, KernelError::Multiple { what: "rms_norm input", value: 9, multiple: 4 });
    assert!(rms_norm(&cpu, &[0.0; 4], &[1.0; 4], 1e-5, &mut out).is_err());
    assert!(rms_norm_in_place(&cpu, &mut out, &[], 1e-5).is_err());
    assert!(add_in_place(&cpu, &mut out, &[0.0; 7]).is_err());
    assert!(add_bias_in_place(&cpu, &mut out, &[0.0; 3]).is_err());
    assert!(rms_norm(&cpu, &[], &[], 1e-5, &mut []).is_ok());
}
