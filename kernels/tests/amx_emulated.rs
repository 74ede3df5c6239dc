//! The AMX path gives the bits of the other paths, on any processor with AVX-512.
//!
//! `matmul_invariance` holds the others to each other. Where the processor has AMX the path runs as it is. Elsewhere its tile instructions trap, and `amx_emulator`
//! carries them out by the manual and ends the process at any misuse or overflow. All types, odd shapes, every
//! number of token rows up to 70, codes and activations at their limits.

#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod amx_emulator;
mod sample;

use kernels::blocks::BlockType;
use kernels::cpu::{
    Accumulate, ActivationFormat, Activations, Cpu, Isa, Matrix, Product, QuantizedRows, matmul,
    quantize_rows,
};
use proptest::prelude::*;
use std::arch::asm;
use std::process::Command;
use std::sync::LazyLock;

/// The AMX path, with one and three threads; nothing where AVX-512 is missing, which the tests say.
static AMX: LazyLock<Vec<Cpu>> = LazyLock::new(|| {
    if !Isa::available().contains(&Isa::Avx512) {
        eprintln!("SKIPPED: the AMX path needs AVX-512 VNNI beside it, which this processor lacks");
        return Vec::new();
    }
    if native() {
        return [1, 3].map(|threads| Cpu::new(Isa::Amx, threads).unwrap()).into();
    }
    amx_emulator::install();
    // SAFETY: AVX-512 is there, and the handler carries the tile instructions out.
    [1, 3].map(|threads| unsafe { Cpu::assuming(Isa::Amx, threads) }.unwrap()).into()
});

fn native() -> bool {
    Isa::detect() == Isa::Amx
}

fn quantized_types() -> impl Iterator<Item = BlockType> {
    BlockType::ALL.into_iter().filter(|ty| ty.block_len() > 1)
}

/// Where the half-precision scales and minimums of a block lie.
fn halves(ty: BlockType) -> &'static [usize] {
    match ty {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q6K => &[208],
        _ => &[0],
    }
}

#[derive(Debug, Clone)]
struct Case {
    ty: BlockType,
    rows: usize,
    blocks: usize,
    tokens: usize,
    seed: u64,
}

impl Case {
    fn cols(&self) -> usize {
        self.blocks * self.ty.block_len()
    }

    /// Random codes under scales of ordinary size and either sign.
    fn weights(&self) -> Vec<u8> {
        let len = self.rows * self.blocks * self.ty.block_bytes();
        let mut raw: Vec<u8> =
            sample::floats(self.seed, len).into_iter().map(|x| (x * 128.0 + 128.0) as u8).collect();
        for block in raw.chunks_exact_mut(self.ty.block_bytes()) {
            for &at in halves(self.ty) {
                block[at + 1] = block[at + 1] & 0x83 | 0x20;
            }
        }
        raw
    }

    fn check(&self) {
        let x = sample::floats(self.seed ^ 1, self.tokens * self.cols());
        self.check_with(&self.weights(), &x, Isa::Avx512);
    }

    /// Compares the AMX path with another, plain and with a bias added to what was there.
    fn check_with(&self, raw: &[u8], x: &[f32], other: Isa) {
        let run = |cpu: &Cpu| {
            let weight = Matrix::pack(cpu, self.ty, self.rows, self.cols(), raw).unwrap();
            let mut quantized = QuantizedRows::new().unwrap();
            let format = weight.activation_format();
            quantize_rows(cpu, x, (self.tokens, self.cols()), format, &mut quantized).unwrap();
            let held = |wanted| (format == wanted).then_some(&quantized);
            let x = Activations {
                rows: self.tokens,
                cols: self.cols(),
                f32: x,
                per32: held(ActivationFormat::Int8Per32),
                per256: held(ActivationFormat::Int8Per256),
            };
            let bias = sample::floats(self.seed ^ 2, self.rows);
            let (mut set, mut added) =
                (vec![7.0; self.tokens * self.rows], vec![1.0; self.tokens * self.rows]);
            let mut products = [
                Product { weight: &weight, bias: None, accumulate: Accumulate::Set, out: &mut set },
                Product { weight: &weight, bias: Some(&bias), accumulate: Accumulate::Add, out: &mut added },
            ];
            matmul(cpu, &x, &mut products).unwrap();
            [set, added].concat()
        };
        let expected = run(&Cpu::new(other, 1).unwrap());
        // One thread or three, by turns: each trap costs a few microseconds.
        let cpu = &AMX[self.tokens % 2];
        let before = amx_emulator::products_of_this_thread();
        sample::assert_same_bits(&run(cpu), &expected, &(self, cpu));
        if cpu.threads() == 1 && !native() {
            let through_tiles = amx_emulator::products_of_this_thread() > before;
            let fewest = if self.ty.block_len() == 256 { 8 } else { 16 };
            assert_eq!(through_tiles, self.tokens >= fewest, "{self:?}");
        }
    }
}

#[test]
fn every_number_of_token_rows_up_to_seventy() {
    if AMX.is_empty() {
        return;
    }
    for ty in quantized_types() {
        for tokens in 1..=70 {
            let blocks = if ty.block_len() == 256 { 2 } else { 9 };
            Case { ty, rows: 33, blocks, tokens, seed: tokens as u64 }.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn odd_shapes(ty in 0..8usize, rows in 1..90usize, blocks in 1..20usize, tokens in 8..150usize, seed: u64) {
        if !AMX.is_empty() {
            let ty = quantized_types().nth(ty).unwrap();
            let blocks = if ty.block_len() == 256 { blocks.div_ceil(5) } else { blocks };
            Case { ty, rows, blocks, tokens, seed }.check();
        }
    }
}

/// Every code, sub-scale and sub-minimum bit set or clear, and both signs of the signed ones, under scales of 1;
/// activations all at one limit, or with signs that alternate.
#[test]
fn codes_scales_and_activations_at_their_limits() {
    if AMX.is_empty() {
        return;
    }
    for ty in quantized_types() {
        for fill in [0x00, 0xff, 0x7f, 0x80, 0x0f, 0xf0] {
            let case = Case { ty, rows: 17, blocks: 3, tokens: 32 + usize::from(fill % 2), seed: 0 };
            let mut raw = vec![fill; case.rows * case.blocks * ty.block_bytes()];
            // Q6_K's sub-scales are signed bytes, one fill a row.
            for (row, blocks) in raw.chunks_exact_mut(case.blocks * ty.block_bytes()).enumerate() {
                for block in blocks.chunks_exact_mut(ty.block_bytes()) {
                    if ty == BlockType::Q6K {
                        block[192..208].fill([0x80, 0x7f, 0xff, 0x00][row % 4]);
                    }
                    for &at in halves(ty) {
                        block[at..at + 2].copy_from_slice(&[0x00, 0x3c]);
                    }
                }
            }
            let signs: [fn(usize) -> bool; 4] = [|_| true, |_| false, |i| i % 2 == 0, |i| i / 16 % 2 == 0];
            for positive in signs {
                let x: Vec<f32> = (0..case.tokens * case.cols())
                    .map(|i| if positive(i) { 127.0 } else { -127.0 })
                    .collect();
                case.check_with(&raw, &x, Isa::Portable);
            }
        }
    }
}

#[test]
fn no_thread_keeps_its_tiles() {
    if AMX.is_empty() {
        return;
    }
    for ty in [BlockType::Q4K, BlockType::Q8_0] {
        Case { ty, rows: 200, blocks: 8, tokens: 64, seed: 3 }.check();
    }
    // Other tests may be inside a product on their threads, though not for long.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while amx_emulator::configured_threads() > 0 {
        assert!(std::time::Instant::now() < deadline, "tiles stay configured");
        std::thread::yield_now();
    }
}

/// 64 bytes for LDTILECFG: eight equal tiles.
fn configuration(rows: u8, row_bytes: u8) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for tile in 0..8 {
        (bytes[16 + 2 * tile], bytes[48 + tile]) = (row_bytes, rows);
    }
    bytes
}

/// The instructions themselves, native or emulated: each pair of signs, strides and part tiles.
#[test]
fn tile_instructions_do_what_the_manual_says() {
    if AMX.is_empty() {
        return;
    }
    let byte = |seed: u64| sample::floats(seed, 20 * 16).into_iter().map(|x| (x * 128.0 + 128.0) as u8);
    // Five rows of 20 bytes, 20 bytes apart: 5 is also the depth, as 20 / 4.
    let (a, b): (Vec<u8>, Vec<u8>) = (byte(1).collect(), byte(2).collect());
    let shapes = configuration(5, 20);
    let mut sums = [[[9i32; 6]; 5]; 4];
    let [ss, su, us, uu] = sums.each_mut().map(|sums| sums.as_mut_ptr());
    // SAFETY: the tiles are there, natively or emulated; each load reads 5 rows of 20 bytes of vectors of 320, each
    // store writes 5 rows of 20 bytes, 24 apart, of 120.
    unsafe {
        asm!(
            "ldtilecfg [{shapes}]",
            "tileloadd tmm1, [{a} + {twenty}]", "tileloadd tmm2, [{b} + {ten}*2]",
            "tilezero tmm0", "tilezero tmm3", "tilezero tmm4", "tilezero tmm5",
            "tdpbssd tmm0, tmm1, tmm2", "tdpbsud tmm3, tmm1, tmm2",
            "tdpbusd tmm4, tmm1, tmm2", "tdpbuud tmm5, tmm1, tmm2",
            "tdpbuud tmm5, tmm1, tmm2",
            "tilestored [{ss} + {stride}], tmm0", "tilestored [{su} + {stride}], tmm3",
            "tilestored [{us} + {stride}], tmm4", "tilestored [{uu} + {stride}], tmm5",
            "tilerelease",
            shapes = in(reg) &shapes, a = in(reg) a.as_ptr(), b = in(reg) b.as_ptr(),
            twenty = in(reg) 20usize, ten = in(reg) 10usize, stride = in(reg) 24usize,
            ss = in(reg) ss, su = in(reg) su, us = in(reg) us, uu = in(reg) uu,
            options(nostack)
        );
    }
    let value = |byte: u8, signed: bool| if signed { i32::from(byte as i8) } else { i32::from(byte) };
    let kinds = [(true, true, 1), (true, false, 1), (false, true, 1), (false, false, 2)];
    for (sums, (a_signed, b_signed, times)) in sums.iter().zip(kinds) {
        for (m, row) in sums.iter().enumerate() {
            for (n, sum) in row.iter().enumerate() {
                let products = (0..20).map(|i| {
                    let b = b.get(20 * (i / 4) + 4 * n + i % 4).copied().unwrap_or(0);
                    value(a[20 * m + i], a_signed) * value(b, b_signed)
                });
                let expected = if n < 5 { times * products.sum::<i32>() } else { 9 };
                assert_eq!(*sum, expected, "{m} {n} {a_signed} {b_signed}");
            }
        }
    }
}

/// Set in the child processes of the next test: what to do wrong.
const MISUSE: &str = "AMX_MISUSE";

/// Runs only as a child of the next test.
#[test]
fn misuse() {
    let Ok(kind) = std::env::var(MISUSE) else { return };
    assert!(!AMX.is_empty());
    let (too_large, half) = (configuration(17, 64), configuration(16, 32));
    // SAFETY: nothing but registers is touched; the process is meant to end here.
    unsafe {
        match kind.as_str() {
            "not configured" => asm!("tilezero tmm0"),
            "too large" => asm!("ldtilecfg [{}]", in(reg) &too_large),
            "other depths" => asm!("ldtilecfg [{}]", "tdpbssd tmm0, tmm1, tmm2", in(reg) &half),
            other => panic!("{other} is no misuse"),
        }
    }
}

#[test]
fn misuse_ends_the_process() {
    if AMX.is_empty() {
        return;
    }
    for kind in ["not configured", "too large", "other depths"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "misuse", "--nocapture"])
            .env(MISUSE, kind)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success() && !said.contains("panicked"), "{kind}: {child:?}");
        assert!(native() || said.contains("amx emulator"), "{kind}: {said}");
    }
}
