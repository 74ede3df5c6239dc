//! Products with F32, F16 and BF16 weights against f64, on every instruction set, for any number of tokens.

#![expect(clippy::unwrap_used, reason = "a failed call fails the test")]

mod sample;

use half::{bf16, f16};
use kernels::cpu::{Cpu, FloatMatrix, FloatType, Isa, float_matmul};
use proptest::prelude::*;
use sample::{assert_close, assert_same_bits, floats, same_everywhere};

const TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

/// The bytes of a GGUF tensor and the values they stand for.
fn encode(kind: FloatType, weights: &[f32]) -> (Vec<u8>, Vec<f64>) {
    let (mut raw, mut values) = (Vec::new(), Vec::new());
    for &weight in weights {
        match kind {
            FloatType::F32 => {
                raw.extend(weight.to_le_bytes());
                values.push(f64::from(weight));
            }
            FloatType::F16 => {
                raw.extend(f16::from_f32(weight).to_le_bytes());
                values.push(f16::from_f32(weight).to_f64());
            }
            FloatType::Bf16 => {
                raw.extend(bf16::from_f32(weight).to_le_bytes());
                values.push(bf16::from_f32(weight).to_f64());
            }
        }
    }
    (raw, values)
}

fn check(kind: FloatType, rows: usize, cols: usize, tokens: usize, seed: u64) {
    let (raw, weights) = encode(kind, &floats(seed, rows * cols));
    let x = floats(seed + 1, tokens * cols);
    let multiply = |cpu: &Cpu, x: &[f32]| {
        let matrix = FloatMatrix::pack(cpu, kind, rows, cols, &raw).unwrap();
        let mut out = vec![f32::NAN; x.len() / cols * rows];
        float_matmul(cpu, &matrix, x, &mut out).unwrap();
        out
    };
    let out = same_everywhere(|cpu| multiply(cpu, &x));
    let (mut exact, mut sizes) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(cols) {
        for w in weights.chunks_exact(cols) {
            exact.push(x.iter().zip(w).map(|(&x, &w)| f64::from(x) * w).sum::<f64>());
            sizes.push(x.iter().zip(w).map(|(&x, &w)| (f64::from(x) * w).abs()).sum::<f64>());
        }
    }
    assert_close(&out, &exact, |i| 1e-6 * sizes[i] + 1e-30);
    let cpu = Cpu::new(Isa::detect(), 2).unwrap();
    for token in (0..tokens).step_by(1 + tokens / 8) {
        let alone = multiply(&cpu, &x[token * cols..(token + 1) * cols]);
        assert_same_bits(&alone, &out[token * rows..(token + 1) * rows], &"token alone");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn products_match_f64_for_odd_shapes(
        kind in prop::sample::select(&TYPES[..]),
        rows in 1usize..150,
        cols in 1usize..700,
        tokens in 1usize..40,
        seed in 0u64..1000,
    ) {
        check(kind, rows, cols, tokens, seed);
    }
}

#[test]
fn products_match_f64_for_model_shapes() {
    for kind in TYPES {
        check(kind, 256, 2048, 1, 1);
        check(kind, 100, 5632, 9, 2);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let cpu = Cpu::new(Isa::Portable, 1).unwrap();
    assert!(FloatMatrix::pack(&cpu, FloatType::F16, 3, 4, &[0; 25]).is_err());
    assert!(FloatMatrix::pack(&cpu, FloatType::F16, 3, 0, &[]).is_err());
    assert!(FloatMatrix::pack(&cpu, FloatType::F32, usize::MAX, 16, &[0; 64]).is_err());
    let matrix = FloatMatrix::pack(&cpu, FloatType::F16, 3, 4, &[0; 24]).unwrap();
    assert_eq!((matrix.rows(), matrix.cols(), matrix.row_groups(), matrix.bytes()), (3, 4, 1, 128));
    assert!(float_matmul(&cpu, &matrix, &[0.0; 8], &mut [0.0; 6]).is_ok());
    assert!(float_matmul(&cpu, &matrix, &[0.0; 9], &mut [0.0; 6]).is_err());
    assert!(float_matmul(&cpu, &matrix, &[0.0; 8], &mut [0.0; 7]).is_err());
}
