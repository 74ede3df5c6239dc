//! Inputs and comparisons for the kernel tests.
#![allow(dead_code, reason = "each test file uses its part")]

use kernels::cpu::{Cpu, Isa};

/// `len` floats in −1..1, none of them round, the same for the same seed.
pub(crate) fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut next = || {
        // SplitMix64 (Steele et al. 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// A context for every instruction set here, with one and with three threads; the portable one comes first.
pub(crate) fn contexts() -> Vec<Cpu> {
    let pairs = Isa::available().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]);
    pairs.map(|(isa, threads)| Cpu::new(isa, threads).unwrap()).collect()
}

/// Fails at the first element whose bits differ.
#[track_caller]
pub(crate) fn assert_same_bits(actual: &[f32], expected: &[f32], context: &dyn std::fmt::Debug) {
    assert_eq!(actual.len(), expected.len(), "{context:?}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == e.to_bits(), "element {i}: {a:e} for {e:e} ({context:?})");
    }
}

/// Fails at the first element further than `bound` from the exact one.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], exact: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(actual.len(), exact.len());
    for (i, (&a, &e)) in actual.iter().zip(exact).enumerate() {
        assert!((f64::from(a) - e).abs() <= bound(i), "element {i}: {a:e} for {e:e}, bound {:e}", bound(i));
    }
}

/// Runs `operation` in every context, checks that all give the same bits, and returns them.
#[track_caller]
pub(crate) fn same_everywhere(operation: impl Fn(&Cpu) -> Vec<f32>) -> Vec<f32> {
    let contexts = contexts();
    let expected = operation(&contexts[0]);
    for cpu in &contexts[1..] {
        assert_same_bits(&operation(cpu), &expected, cpu);
    }
    expected
}
