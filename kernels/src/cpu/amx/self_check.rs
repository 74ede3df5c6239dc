//! A small product of every quantized type, with and without tiles: the bits must agree before AMX is offered.
//!
//! Called once by `presence`, within half a millisecond. It guards against what cannot be tested where there is no
//! such processor: an instruction that does something else than its manual says, or a virtual machine that
//! carries it out wrongly. What it deliberately does not do: cover all shapes, which the tests do.

use crate::KernelError;
use crate::blocks::BlockType;
use crate::cpu::{
    Accumulate, ActivationFormat, Activations, Cpu, Isa, Matrix, Product, QuantizedRows, matmul,
    quantize_rows,
};

/// Three groups of weight rows, the last one not full.
const ROWS: usize = 37;
/// Two superblocks.
const COLS: usize = 512;
/// A pair of tiles of token rows, and a third one that is not full.
const TOKENS: usize = 37;

/// Compares AMX with AVX-512. Errors: the name of the first type whose bits differ.
///
/// # Safety
/// The tile instructions and AVX-512 VNNI work in this process.
pub(super) unsafe fn run() -> Result<(), &'static str> {
    for ty in BlockType::ALL.into_iter().filter(|ty| ty.block_len() > 1) {
        let products = [Isa::Avx512, Isa::Amx].map(|isa| {
            // SAFETY: the caller promises both.
            let cpu = unsafe { Cpu::assuming(isa, 1) };
            cpu.and_then(|cpu| product(&cpu, ty))
        });
        match products {
            [Ok(expected), Ok(found)] if expected == found => {}
            _ => return Err(ty.name()),
        }
    }
    Ok(())
}

/// The bits of one product. Weights and activations are the same ones at every call.
fn product(cpu: &Cpu, ty: BlockType) -> Result<Vec<u32>, KernelError> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut raw = vec![0; ROWS * COLS / ty.block_len() * ty.block_bytes()];
    for block in raw.chunks_exact_mut(ty.block_bytes()) {
        block.fill_with(&mut next);
        // Half-precision scales of ordinary size, of either sign.
        let halves: &[usize] = match ty {
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::Q6K => &[208],
            _ => &[0],
        };
        for &at in halves {
            block[at + 1] = block[at + 1] & 0x83 | 0x20;
        }
    }
    let weight = Matrix::pack(cpu, ty, ROWS, COLS, &raw)?;
    let x: Vec<f32> = (0..TOKENS * COLS).map(|_| f32::from(next()) - 127.5).collect();
    let mut quantized = QuantizedRows::new()?;
    let format = weight.activation_format();
    quantize_rows(cpu, &x, (TOKENS, COLS), format, &mut quantized)?;
    let held = |wanted| (format == wanted).then_some(&quantized);
    let x = Activations {
        rows: TOKENS,
        cols: COLS,
        f32: &x,
        per32: held(ActivationFormat::Int8Per32),
        per256: held(ActivationFormat::Int8Per256),
    };
    let mut out = vec![0.0; TOKENS * ROWS];
    let accumulate = Accumulate::Set;
    matmul(cpu, &x, &mut [Product { weight: &weight, bias: None, accumulate, out: &mut out }])?;
    Ok(out.into_iter().map(f32::to_bits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_compares_numbers_and_takes_little_time() {
        let cpu = Cpu::new(Isa::Portable, 1).unwrap();
        for ty in BlockType::ALL.into_iter().filter(|ty| ty.block_len() > 1) {
            let bits = product(&cpu, ty).unwrap();
            assert!(bits.iter().all(|&bits| f32::from_bits(bits).is_normal()), "{}", ty.name());
        }
    }
}
