//! Norms, gated activations, gathering and quantizing of the device kernels against the CPU backend, bit by bit.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod device;
mod sample;

use kernels::blocks::BlockType;
use kernels::cpu::{self, Accumulate, ActivationFormat, Cpu, Gate, Isa};
use kernels::hip::{Matrix, Norm, Product, Rows};
use sample::{assert_same_bits, floats};

fn cpu() -> Cpu {
    Cpu::new(Isa::detect(), 1).unwrap()
}

#[test]
fn norms_of_any_width_have_the_bits_of_the_cpu() {
    let Some(gpu) = device::open() else { return };
    for (rows, width) in
        [(1, 1), (3, 5), (2, 63), (5, 64), (1, 100), (2, 1024), (3, 1100), (2, 4096), (1, 5120)]
    {
        let (x, gain) = (floats(width as u64, rows * width), floats(2, width));
        let mut expected = vec![0.0; x.len()];
        cpu::rms_norm(&cpu(), &x, &gain, 1e-5, &mut expected).unwrap();
        let gain = device::vector(&gpu, &gain);
        let norm = Norm { gain: &gain, eps: 1e-5 };
        let x = device::rows(&gpu, width, &x);
        let mut out = Rows::new(&gpu, width).unwrap();
        gpu.rms_norm(&x, norm, &mut out, &[]).unwrap();
        assert_same_bits(&out.download(&gpu).unwrap(), &expected, &(rows, width));
    }
}

#[test]
fn the_norm_of_heads_is_that_of_rows() {
    let Some(gpu) = device::open() else { return };
    for (heads, dim) in [(4, 64), (3, 128), (2, 80)] {
        let (mut x, gain) = (floats(dim as u64, 5 * heads * dim), floats(2, dim));
        let mut rows = device::rows(&gpu, heads * dim, &x);
        cpu::rms_norm_in_place(&cpu(), &mut x, &gain, 1e-6).unwrap();
        let gain = device::vector(&gpu, &gain);
        gpu.head_norm(&mut rows, Norm { gain: &gain, eps: 1e-6 }).unwrap();
        assert_same_bits(&rows.download(&gpu).unwrap(), &x, &(heads, dim));
    }
}

#[test]
fn gated_activations_have_the_bits_of_the_cpu() {
    let Some(gpu) = device::open() else { return };
    for kind in [Gate::Silu, Gate::GeluTanh] {
        for (rows, width) in [(1, 7), (3, 1000), (2, 2048)] {
            let mut gate = floats(4, rows * width);
            gate.iter_mut().for_each(|gate| *gate *= 12.0);
            gate[0] = -200.0;
            gate[1] = 200.0;
            gate[2] = f32::NEG_INFINITY;
            let up = floats(5, rows * width);
            let mut expected = vec![0.0; up.len()];
            cpu::gated_activation(&cpu(), kind, &gate, &up, &mut expected).unwrap();
            let (gate, up) = (device::rows(&gpu, width, &gate), device::rows(&gpu, width, &up));
            let mut out = Rows::new(&gpu, width).unwrap();
            gpu.gated_activation(kind, (&gate, &up), &mut out, &[]).unwrap();
            let out = out.download(&gpu).unwrap();
            // −∞ · 0 is not a number; its sign and payload are nobody's promise.
            assert_eq!(out[2].is_nan(), expected[2].is_nan());
            assert_same_bits(&out[3..], &expected[3..], &(kind, rows, width));
            assert_same_bits(&out[..2], &expected[..2], &(kind, rows, width));
        }
    }
}

/// What a norm or an activation quantizes on the way out is what quantizing its output gives.
#[test]
fn quantizing_on_the_way_out_changes_no_bit() {
    let Some(gpu) = device::open() else { return };
    let (rows, width) = (3, 1536);
    let x = device::rows(&gpu, width, &floats(1, rows * width));
    let gain = device::vector(&gpu, &floats(2, width));
    let formats = [ActivationFormat::Int8Per32, ActivationFormat::Int8Per256];
    for (ty, block) in [(BlockType::Q8_0, 34), (BlockType::Q4K, 144)] {
        let raw: Vec<u8> = (0..8 * width / ty.block_len() * block).map(|i| (i * 7 % 61) as u8).collect();
        let weight = Matrix::load(&gpu, (ty, 8, width), &raw, &mut |_| ()).unwrap();
        let product = |x: &mut Rows| {
            let mut out = Rows::new(&gpu, 8).unwrap();
            let (bias, accumulate) = (None, Accumulate::Set);
            gpu.matmul(x, &mut Product { weight: &weight, bias, accumulate, out: &mut out }).unwrap();
            out.download(&gpu).unwrap()
        };
        let norm = |formats: &[ActivationFormat]| {
            let mut out = Rows::new(&gpu, width).unwrap();
            gpu.rms_norm(&x, Norm { gain: &gain, eps: 1e-5 }, &mut out, formats).unwrap();
            product(&mut out)
        };
        assert_same_bits(&norm(&formats), &norm(&[]), &ty);
        let gated = |formats: &[ActivationFormat]| {
            let mut out = Rows::new(&gpu, width).unwrap();
            gpu.gated_activation(Gate::Silu, (&x, &x), &mut out, formats).unwrap();
            product(&mut out)
        };
        assert_same_bits(&gated(&formats), &gated(&[]), &ty);
    }
}

/// Blocks that are zero, tiny, huge or not numbers quantize as on the CPU.
#[test]
fn odd_blocks_quantize_as_on_the_cpu() {
    let Some(gpu) = device::open() else { return };
    let raw: Vec<u8> = (0..4 * 16)
        .flat_map(|_| {
            let mut block = vec![0x00, 0x3c];
            block.extend((0..32).map(|i| (i * 9) as u8));
            block
        })
        .collect();
    let weight = Matrix::load(&gpu, (BlockType::Q8_0, 4, 512), &raw, &mut |_| ()).unwrap();
    let on_cpu = cpu::Matrix::pack(&cpu(), BlockType::Q8_0, 4, 512, &raw).unwrap();
    for odd in [0.0, -0.0, 1e-45, 1e-38, 1e-30, f32::MAX, f32::MIN, f32::NAN, f32::INFINITY] {
        let mut x = floats(6, 512);
        x[32..64].fill(odd);
        x[100] = odd;
        let mut quantized = cpu::QuantizedRows::new().unwrap();
        let format = ActivationFormat::Int8Per32;
        cpu::quantize_rows(&cpu(), &x, (1, 512), format, &mut quantized).unwrap();
        let mut expected = vec![0.0; 4];
        let rows = cpu::Activations { rows: 1, cols: 512, f32: &x, per32: Some(&quantized), per256: None };
        let (bias, accumulate) = (None, Accumulate::Set);
        let product = cpu::Product { weight: &on_cpu, bias, accumulate, out: &mut expected };
        cpu::matmul(&cpu(), &rows, &mut [product]).unwrap();
        let (mut x, mut out) = (device::rows(&gpu, 512, &x), Rows::new(&gpu, 4).unwrap());
        gpu.matmul(&mut x, &mut Product { weight: &weight, bias: None, accumulate, out: &mut out }).unwrap();
        for (out, expected) in out.download(&gpu).unwrap().iter().zip(&expected) {
            assert!(out.to_bits() == expected.to_bits() || out.is_nan() && expected.is_nan(), "{odd}: {out}");
        }
    }
}

#[test]
fn gathered_rows_are_the_chosen_ones() {
    let Some(gpu) = device::open() else { return };
    let x = floats(1, 7 * 300);
    let rows = device::rows(&gpu, 300, &x);
    let mut out = Rows::new(&gpu, 300).unwrap();
    gpu.gather(&rows, &[6, 0, 3], &mut out).unwrap();
    let expected: Vec<f32> = [6, 0, 3].iter().flat_map(|row| x[row * 300..][..300].to_vec()).collect();
    assert_same_bits(&out.download(&gpu).unwrap(), &expected, &"gather");
    assert!(gpu.gather(&rows, &[7], &mut out).is_err());
}
