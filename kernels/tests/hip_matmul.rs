//! The products and the embedding of the device kernels against the CPU backend: the very same bits, for every
//! weight type, odd shapes and any number of token rows, on waves of 32 and 64 (by the architecture of the device).

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod device;
mod sample;

use kernels::blocks::{BlockType, dequantize};
use kernels::cpu::{self, Accumulate, ActivationFormat, Activations, Cpu, Isa, QuantizedRows};
use kernels::hip::{Gpu, HipError, Matrix, Product, Rows};
use sample::{assert_same_bits, floats};

/// The types that the device kernels know.
fn types() -> Vec<BlockType> {
    let known = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"];
    BlockType::ALL.into_iter().filter(|ty| known.contains(&ty.name())).collect()
}

#[derive(Debug, Clone, Copy)]
struct Case {
    ty: BlockType,
    rows: usize,
    cols: usize,
    tokens: usize,
}

/// Random codes under scales of ordinary size and either sign.
fn weights(case: Case) -> Vec<u8> {
    let ty = case.ty;
    let blocks = case.rows * case.cols / ty.block_len();
    let noise = floats((case.rows * 31 + case.cols) as u64, blocks * ty.block_bytes());
    let mut raw: Vec<u8> = noise.iter().map(|noise| (noise.to_bits() >> 3) as u8).collect();
    for block in raw.chunks_exact_mut(ty.block_bytes()) {
        let halves: &[usize] = match ty.name() {
            "F32" => &[2],
            "Q4_1" | "Q5_1" | "Q4_K" | "Q5_K" => &[0, 2],
            "Q6_K" => &[208],
            _ => &[0],
        };
        let exponent = if matches!(ty.name(), "BF16" | "F32") { 0x3c } else { 0x20 };
        for &at in halves {
            block[at + 1] = (block[at + 1] & 0x83) | exponent;
        }
    }
    raw
}

fn on_cpu(case: Case, raw: &[u8], x: &[f32], bias: &[f32], before: &[f32]) -> Vec<f32> {
    let cpu = Cpu::new(Isa::detect(), 1).unwrap();
    let weight = cpu::Matrix::pack(&cpu, case.ty, case.rows, case.cols, raw).unwrap();
    let mut quantized = QuantizedRows::new().unwrap();
    if weight.activation_format() != ActivationFormat::F32 {
        let shape = (case.tokens, case.cols);
        cpu::quantize_rows(&cpu, x, shape, weight.activation_format(), &mut quantized).unwrap();
    }
    let mut out = before.to_vec();
    let x = Activations {
        rows: case.tokens,
        cols: case.cols,
        f32: x,
        per32: Some(&quantized),
        per256: Some(&quantized),
    };
    let accumulate = Accumulate::Add;
    cpu::matmul(
        &cpu,
        &x,
        &mut [cpu::Product { weight: &weight, bias: Some(bias), accumulate, out: &mut out }],
    )
    .unwrap();
    out
}

fn check(gpu: &Gpu, case: Case) {
    let raw = weights(case);
    let x = floats(7, case.tokens * case.cols);
    let (bias, before) = (floats(8, case.rows), floats(9, case.tokens * case.rows));
    let expected = on_cpu(case, &raw, &x, &bias, &before);
    let weight = Matrix::load(gpu, (case.ty, case.rows, case.cols), &raw, &mut |_| ()).unwrap();
    let mut x = device::rows(gpu, case.cols, &x);
    let mut out = device::rows(gpu, case.rows, &before);
    let bias = device::vector(gpu, &bias);
    let mut product =
        Product { weight: &weight, bias: Some(&bias), accumulate: Accumulate::Add, out: &mut out };
    gpu.matmul(&mut x, &mut product).unwrap();
    assert_same_bits(&out.download(gpu).unwrap(), &expected, &case);
    // Without bias, replacing what was there.
    let mut product = Product { weight: &weight, bias: None, accumulate: Accumulate::Set, out: &mut out };
    gpu.matmul(&mut x, &mut product).unwrap();
    let plain = out.download(gpu).unwrap();
    let bias = floats(8, case.rows);
    for (i, (plain, expected)) in plain.iter().zip(&expected).enumerate() {
        assert_eq!(before[i] + (plain + bias[i % case.rows]), *expected, "{case:?}, output {i}");
    }
}

#[test]
fn every_type_and_number_of_token_rows_has_the_bits_of_the_cpu() {
    let Some(gpu) = device::open() else { return };
    for ty in types() {
        let cols = if ty.block_len() == 256 { 768 } else { 96 };
        for tokens in [1, 2, 3, 4, 5, 8, 9, 17] {
            check(&gpu, Case { ty, rows: 19, cols, tokens });
        }
    }
}

#[test]
fn odd_shapes_have_the_bits_of_the_cpu() {
    let Some(gpu) = device::open() else { return };
    for ty in types() {
        let shapes: &[(usize, usize)] = match ty.block_len() {
            1 => &[(1, 1), (17, 29), (16, 256), (3, 4097), (33, 515)],
            256 => &[(1, 256), (65, 512), (7, 2304), (64, 4352)],
            _ => &[(1, 32), (65, 64), (7, 2080), (64, 160), (130, 4128)],
        };
        for &(rows, cols) in shapes {
            for tokens in [1, 2, 7] {
                check(&gpu, Case { ty, rows, cols, tokens });
            }
        }
        check(&gpu, Case { ty, rows: 67, cols: shapes[1].1, tokens: 70 });
    }
}

/// A token row has the same bits alone, among a few and among many.
#[test]
fn the_number_of_token_rows_changes_no_bit() {
    let Some(gpu) = device::open() else { return };
    for ty in types() {
        let case = Case { ty, rows: 21, cols: 512, tokens: 11 };
        let (raw, x) = (weights(case), floats(3, case.tokens * case.cols));
        let weight = Matrix::load(&gpu, (ty, case.rows, case.cols), &raw, &mut |_| ()).unwrap();
        let run = |x: &[f32]| {
            let (mut x, mut out) = (device::rows(&gpu, case.cols, x), Rows::new(&gpu, case.rows).unwrap());
            let mut product =
                Product { weight: &weight, bias: None, accumulate: Accumulate::Set, out: &mut out };
            gpu.matmul(&mut x, &mut product).unwrap();
            out.download(&gpu).unwrap()
        };
        let all = run(&x);
        for tokens in [1, 2, 4, 6] {
            let some = run(&x[case.cols..(tokens + 1) * case.cols]);
            assert_same_bits(&some, &all[case.rows..(tokens + 1) * case.rows], &(case, tokens));
        }
    }
}

/// Integers that f32 holds exactly, so that any order gives the same sum: what differs would be an integer dot.
#[test]
fn integer_dots_are_exact() {
    let Some(gpu) = device::open() else { return };
    let (rows, cols, tokens) = (9, 1024, 3);
    let mut raw = vec![0u8; rows * cols / 32 * 34];
    let codes = |row: usize, col: usize| ((row * 37 + col * 11) % 255) as i32 - 127;
    for (index, block) in raw.chunks_exact_mut(34).enumerate() {
        // The scale one as a half.
        block[..2].copy_from_slice(&0x3c00u16.to_le_bytes());
        for (i, code) in block[2..].iter_mut().enumerate() {
            *code = codes(index / (cols / 32), index % (cols / 32) * 32 + i) as i8 as u8;
        }
    }
    // A greatest magnitude of 127 in each block makes the scale one and the codes the values themselves.
    let value = |token: usize, col: usize| {
        if col.is_multiple_of(32) { 127 } else { ((token * 13 + col * 7) % 255) as i32 - 127 }
    };
    let x: Vec<f32> =
        (0..tokens).flat_map(|token| (0..cols).map(move |col| value(token, col) as f32)).collect();
    let weight = Matrix::load(&gpu, (BlockType::Q8_0, rows, cols), &raw, &mut |_| ()).unwrap();
    let (mut x, mut out) = (device::rows(&gpu, cols, &x), Rows::new(&gpu, rows).unwrap());
    let mut product = Product { weight: &weight, bias: None, accumulate: Accumulate::Set, out: &mut out };
    gpu.matmul(&mut x, &mut product).unwrap();
    for (i, out) in out.download(&gpu).unwrap().into_iter().enumerate() {
        let (token, row) = (i / rows, i % rows);
        let exact: i32 = (0..cols).map(|col| codes(row, col) * value(token, col)).sum();
        assert_eq!(out, exact as f32, "token {token}, row {row}");
    }
}

#[test]
fn embeddings_have_the_bits_of_ggml() {
    let Some(gpu) = device::open() else { return };
    for ty in types() {
        let case = Case { ty, rows: 37, cols: 768, tokens: 4 };
        let raw = weights(case);
        let mut table = vec![0.0; case.rows * case.cols];
        dequantize(ty, &raw, &mut table).unwrap();
        let matrix = Matrix::load(&gpu, (ty, case.rows, case.cols), &raw, &mut |_| ()).unwrap();
        let tokens = [36, 0, 17, 36];
        let mut out = Rows::new(&gpu, case.cols).unwrap();
        gpu.embed(&matrix, &tokens, &mut out).unwrap();
        let expected: Vec<f32> = tokens
            .iter()
            .flat_map(|&token| table[token as usize * case.cols..][..case.cols].to_vec())
            .collect();
        assert_same_bits(&out.download(&gpu).unwrap(), &expected, &case);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = device::open() else { return };
    let case = Case { ty: BlockType::Q4_0, rows: 8, cols: 64, tokens: 2 };
    let raw = weights(case);
    let load = |rows, cols, raw: &[u8]| Matrix::load(&gpu, (case.ty, rows, cols), raw, &mut |_| ());
    assert!(load(8, 65, &raw).is_err());
    assert!(load(9, 64, &raw).is_err());
    assert!(load(0, 64, &[]).is_err());
    let weight = load(8, 64, &raw).unwrap();
    let mut out = Rows::new(&gpu, 8).unwrap();
    let error = gpu.embed(&weight, &[8], &mut Rows::new(&gpu, 64).unwrap()).unwrap_err();
    assert!(matches!(error, HipError::Arguments(_)), "{error}");
    let mut narrow = device::rows(&gpu, 32, &floats(1, 64));
    let mut product = Product { weight: &weight, bias: None, accumulate: Accumulate::Set, out: &mut out };
    assert!(gpu.matmul(&mut narrow, &mut product).is_err());
}
