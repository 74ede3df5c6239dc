//! Promise P3 for the matrix product: the bits of an output depend on its weight row and its token row alone.
//!
//! Over odd shapes, every type and every instruction set of this processor: all equal to the portable path, a
//! token row alone equal to itself in a batch, thread counts of no influence; and the value itself near the
//! exact product within what bytes can hold.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kernels::blocks::{BlockType, dequantize};
use kernels::cpu::{
    Accumulate, ActivationFormat, Activations, Cpu, Isa, Matrix, Product, QuantizedRows, matmul,
    quantize_rows,
};
use proptest::prelude::*;
use std::sync::LazyLock;

/// One context per instruction set and thread count, the portable one first.
static CPUS: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    let cpus = Isa::available().into_iter().flat_map(|isa| [1, 3].map(|threads| (isa, threads)));
    cpus.map(|(isa, threads)| Cpu::new(isa, threads).unwrap()).collect()
});

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Roughly normal, a few values far out, as activations are.
    fn value(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| self.next() as f32 / (1u64 << 31) as f32 - 0.5).sum();
        if self.next().is_multiple_of(61) { sum * 20.0 } else { sum }
    }

    /// Random codes under scales of ordinary size and either sign.
    fn weights(&mut self, ty: BlockType, elements: usize) -> Vec<u8> {
        let mut raw = vec![0u8; elements / ty.block_len() * ty.block_bytes()];
        for block in raw.chunks_exact_mut(ty.block_bytes()) {
            block.fill_with(|| self.next() as u8);
            let halves: &[usize] = match ty {
                BlockType::F32 => &[2],
                BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
                BlockType::Q6K => &[208],
                _ => &[0],
            };
            for &at in halves {
                let sign_and_exponent =
                    if ty == BlockType::BF16 || ty == BlockType::F32 { 0x3c } else { 0x20 };
                block[at + 1] = (block[at + 1] & 0x83) | sign_and_exponent;
            }
        }
        raw
    }
}

#[derive(Debug, Clone)]
struct Case {
    ty: BlockType,
    rows: usize,
    cols: usize,
    tokens: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    (0..BlockType::ALL.len(), 1..70usize, 1..12usize, 1..40usize, any::<u64>()).prop_map(
        |(ty, rows, blocks, tokens, seed)| {
            let ty = BlockType::ALL[ty];
            let cols = match ty.block_len() {
                1 => 29 * blocks,
                256 => 256 * blocks.div_ceil(4),
                len => len * blocks,
            };
            Case { ty, rows, cols, tokens, seed }
        },
    )
}

struct Input {
    raw: Vec<u8>,
    x: Vec<f32>,
    bias: Vec<f32>,
}

impl Input {
    fn of(case: &Case) -> Input {
        let mut random = Random(case.seed);
        Input {
            raw: random.weights(case.ty, case.rows * case.cols),
            x: (0..case.tokens * case.cols).map(|_| random.value()).collect(),
            bias: (0..case.rows).map(|_| random.value()).collect(),
        }
    }
}

/// Two products of `tokens` token rows, starting at `first`: plain, and with a bias added to ones.
fn run(cpu: &Cpu, case: &Case, input: &Input, first: usize, tokens: usize) -> [Vec<f32>; 2] {
    let weight = Matrix::pack(cpu, case.ty, case.rows, case.cols, &input.raw).unwrap();
    let x = &input.x[first * case.cols..][..tokens * case.cols];
    let mut quantized = QuantizedRows::new().unwrap();
    if weight.activation_format() != ActivationFormat::F32 {
        quantize_rows(cpu, x, (tokens, case.cols), weight.activation_format(), &mut quantized).unwrap();
    }
    let x = Activations {
        rows: tokens,
        cols: case.cols,
        f32: x,
        per32: Some(&quantized),
        per256: Some(&quantized),
    };
    let (mut plain, mut added) = (vec![7.0; tokens * case.rows], vec![1.0; tokens * case.rows]);
    let mut products = [
        Product { weight: &weight, bias: None, accumulate: Accumulate::Set, out: &mut plain },
        Product { weight: &weight, bias: Some(&input.bias), accumulate: Accumulate::Add, out: &mut added },
    ];
    matmul(cpu, &x, &mut products).unwrap();
    [plain, added]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The exact product of token 0's row, and how far bytes may stray from it.
fn check_near_exact(case: &Case, input: &Input, plain: &[f32]) {
    let mut weights = vec![0.0; case.rows * case.cols];
    dequantize(case.ty, &input.raw, &mut weights).unwrap();
    for (r, row) in weights.chunks_exact(case.cols).enumerate() {
        let (mut exact, mut bound) = (0.0f64, 0.0f64);
        let block = if case.ty.block_len() == 1 { case.cols } else { case.ty.block_len() };
        for (w, x) in row.chunks(block).zip(input.x[..case.cols].chunks(block)) {
            let amax = x.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
            // Half a code per value, and the rounding of f32 sums.
            let step = if case.ty.block_len() == 1 { 0.0 } else { 0.51 * f64::from(amax) / 127.0 };
            for (w, x) in w.iter().zip(x) {
                exact += f64::from(*w) * f64::from(*x);
                bound += f64::from(w.abs()) * (step + 4e-6 * f64::from(amax));
            }
        }
        let error = (f64::from(plain[r]) - exact).abs();
        assert!(error <= bound, "{case:?} row {r}: {} is {error} from {exact}, bound {bound}", plain[r]);
    }
}

fn check(case: &Case) {
    let input = Input::of(case);
    let expected = run(&CPUS[0], case, &input, 0, case.tokens);
    check_near_exact(case, &input, &expected[0]);
    for (i, (plain, added)) in expected[0].iter().zip(&expected[1]).enumerate() {
        assert_eq!(*added, 1.0 + (plain + input.bias[i % case.rows]), "{case:?} output {i}");
    }
    for cpu in CPUS.iter() {
        let got = run(cpu, case, &input, 0, case.tokens);
        assert!(bits(&got[0]) == bits(&expected[0]), "{case:?} on {cpu:?}");
        assert!(bits(&got[1]) == bits(&expected[1]), "{case:?} on {cpu:?}, with bias");
        // Alone, and in a batch that starts elsewhere.
        let token = case.seed as usize % case.tokens;
        for (first, tokens) in [(token, 1), (token, case.tokens - token)] {
            let got = run(cpu, case, &input, first, tokens);
            let expected = &expected[0][first * case.rows..][..tokens * case.rows];
            assert!(bits(&got[0]) == bits(expected), "{case:?} on {cpu:?}, tokens {first} and {tokens} on");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_path_gives_the_same_bits(case in cases()) {
        check(&case);
    }
}

#[test]
fn every_type_gives_the_same_bits_over_panels_of_tokens() {
    for ty in BlockType::ALL {
        check(&Case { ty, rows: 33, cols: 512, tokens: 143, seed: 5 });
    }
}

/// Runs one token row of 512 columns through a Q8_0 and a Q4_K matrix on every path.
fn special(x: &[f32]) -> Vec<Vec<u32>> {
    let cases =
        [BlockType::Q8_0, BlockType::Q4K].map(|ty| Case { ty, rows: 5, cols: 512, tokens: 1, seed: 1 });
    let outputs = |cpu: &Cpu| {
        cases
            .iter()
            .flat_map(|case| {
                let input = Input { x: x.to_vec(), ..Input::of(case) };
                run(cpu, case, &input, 0, 1)[0]
                    .iter()
                    .map(|v| if v.is_nan() { 1 } else { v.to_bits() })
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    CPUS.iter().map(outputs).collect()
}

#[test]
fn zeros_tiny_huge_and_non_finite_inputs_agree_everywhere() {
    for value in [0.0, -0.0, 1e-45, 1e-38, f32::MAX, f32::MIN, f32::NAN, f32::INFINITY] {
        let mut x = vec![0.25; 512];
        x[300..330].fill(value);
        let outputs = special(&x);
        assert!(outputs.iter().all(|output| *output == outputs[0]), "{value}");
        let nan = outputs[0].iter().all(|&bits| bits == 1);
        assert_eq!(nan, !value.is_finite(), "{value} must show in every output it reaches, and only then");
    }
    let zeros = special(&[0.0; 512]);
    assert!(zeros.iter().flatten().all(|&bits| f32::from_bits(bits) == 0.0));
}

#[test]
fn packed_sizes_stay_within_three_percent_of_the_file() {
    for ty in BlockType::ALL {
        let raw = Random(3).weights(ty, 64 * 2048);
        let weight = Matrix::pack(&CPUS[0], ty, 64, 2048, &raw).unwrap();
        assert!(weight.bytes() as f64 <= raw.len() as f64 * 1.03, "{}: {}", ty.name(), weight.bytes());
        assert_eq!((weight.rows(), weight.cols(), weight.block_type()), (64, 2048, ty));
    }
}

#[test]
fn wrong_lengths_are_refused_and_nothing_is_written() {
    let cpu = &CPUS[0];
    let raw = Random(1).weights(BlockType::Q4_0, 20 * 64);
    assert!(Matrix::pack(cpu, BlockType::Q4_0, 20, 64, &raw[1..]).is_err());
    assert!(Matrix::pack(cpu, BlockType::Q4_0, 20, 63, &raw).is_err());
    assert!(Matrix::pack(cpu, BlockType::Q4_0, usize::MAX, 64, &raw).is_err());
    let weight = Matrix::pack(cpu, BlockType::Q4_0, 20, 64, &raw).unwrap();
    let values = vec![1.0; 128];
    let (mut good, mut other) = (QuantizedRows::new().unwrap(), QuantizedRows::new().unwrap());
    let per_32 = ActivationFormat::Int8Per32;
    quantize_rows(cpu, &values, (2, 64), per_32, &mut good).unwrap();
    quantize_rows(cpu, &values[..64], (1, 64), per_32, &mut other).unwrap();
    assert!(quantize_rows(cpu, &values, (2, 63), per_32, &mut QuantizedRows::new().unwrap()).is_err());
    assert!(quantize_rows(cpu, &values[..126], (2, 63), per_32, &mut QuantizedRows::new().unwrap()).is_err());
    assert!(
        quantize_rows(cpu, &values, (2, 64), ActivationFormat::F32, &mut QuantizedRows::new().unwrap())
            .is_err()
    );

    let attempt = |cols, per32, bias: Option<&[f32]>, out_len| {
        let mut out = vec![9.0; out_len];
        let x = Activations { rows: 2, cols, f32: &values, per32, per256: None };
        let accumulate = Accumulate::Set;
        let result = matmul(cpu, &x, &mut [Product { weight: &weight, bias, accumulate, out: &mut out }]);
        assert!(result.is_ok() || out.iter().all(|&value| value == 9.0));
        result.is_ok()
    };
    assert!(attempt(64, Some(&good), None, 40));
    assert!(!attempt(32, Some(&good), None, 40), "columns");
    assert!(!attempt(64, None, None, 40), "missing activations");
    assert!(!attempt(64, Some(&other), None, 40), "rows of activations");
    assert!(!attempt(64, Some(&good), None, 39), "output");
    assert!(!attempt(64, Some(&good), Some(&[0.0; 19]), 40), "bias");
}
