//! Rotary embedding against f64, on every instruction set, for both pairings and partial rotation.

#![expect(clippy::unwrap_used, reason = "a failed call fails the test")]

mod sample;

use kernels::cpu::{Cpu, Isa, RopePairing, RopeShape, RopeTable, rope_in_place};
use proptest::prelude::*;
use sample::{assert_close, assert_same_bits, floats, same_everywhere};

fn frequencies(dims: usize) -> Vec<f32> {
    (0..dims / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / dims as f64) as f32).collect()
}

fn exact(x: &[f32], shape: RopeShape, positions: &[u32], magnitude: f64) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let pairs = shape.rope_dims / 2;
    for (head, values) in out.chunks_exact_mut(shape.head_dim).enumerate() {
        let position = f64::from(positions[head / shape.heads]);
        for (pair, frequency) in frequencies(shape.rope_dims).into_iter().enumerate() {
            let (first, second) = match shape.pairing {
                RopePairing::Adjacent => (2 * pair, 2 * pair + 1),
                RopePairing::Halves => (pair, pair + pairs),
            };
            let (sin, cos) = (position * f64::from(frequency)).sin_cos();
            let (a, b) = (values[first], values[second]);
            values[first] = magnitude * (a * cos - b * sin);
            values[second] = magnitude * (b * cos + a * sin);
        }
    }
    out
}

fn check(shape: RopeShape, positions: &[u32], magnitude: f32, seed: u64) {
    let width = shape.heads * shape.head_dim;
    let x = floats(seed, positions.len() * width);
    let rotate = |cpu: &Cpu, x: &[f32], positions: &[u32]| {
        let table = RopeTable::compute(positions, &frequencies(shape.rope_dims), magnitude);
        let mut x = x.to_vec();
        rope_in_place(cpu, &mut x, shape, &table).unwrap();
        x
    };
    let out = same_everywhere(|cpu| rotate(cpu, &x, positions));
    assert_close(&out, &exact(&x, shape, positions, f64::from(magnitude)), |_| 4e-7 * f64::from(magnitude));
    let cpu = Cpu::new(Isa::detect(), 1).unwrap();
    for (row, &position) in positions.iter().enumerate() {
        let range = row * width..(row + 1) * width;
        assert_same_bits(&rotate(&cpu, &x[range.clone()], &[position]), &out[range], &"row alone");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn pairs_are_rotated_and_the_rest_is_left(
        heads in 1usize..5,
        pairs in 1usize..70,
        rest in 0usize..9,
        halves: bool,
        positions in prop::collection::vec(0u32..200_000, 1..9),
        seed in 0u64..1000,
    ) {
        let pairing = if halves { RopePairing::Halves } else { RopePairing::Adjacent };
        check(RopeShape { heads, head_dim: 2 * pairs + rest, rope_dims: 2 * pairs, pairing }, &positions, 1.0, seed);
    }
}

#[test]
fn angles_stay_exact_at_the_far_end_of_a_long_context() {
    for pairing in [RopePairing::Adjacent, RopePairing::Halves] {
        let shape = RopeShape { heads: 4, head_dim: 128, rope_dims: 128, pairing };
        check(shape, &[0, 1, 131_071, 1_048_575], 1.25, 7);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let cpu = Cpu::new(Isa::Portable, 1).unwrap();
    let table = RopeTable::compute(&[1, 2], &frequencies(8), 1.0);
    assert_eq!(table.rows(), 2);
    let shape = RopeShape { heads: 1, head_dim: 8, rope_dims: 8, pairing: RopePairing::Halves };
    assert!(rope_in_place(&cpu, &mut [0.0; 16], shape, &table).is_ok());
    assert!(rope_in_place(&cpu, &mut [0.0; 24], shape, &table).is_err());
    assert!(rope_in_place(&cpu, &mut [0.0; 15], shape, &table).is_err());
    assert!(rope_in_place(&cpu, &mut [0.0; 16], RopeShape { rope_dims: 6, ..shape }, &table).is_err());
    assert!(rope_in_place(&cpu, &mut [0.0; 8], RopeShape { head_dim: 4, ..shape }, &table).is_err());
    assert!(rope_in_place(&cpu, &mut [0.0; 8], RopeShape { heads: 0, ..shape }, &table).is_err());
}
