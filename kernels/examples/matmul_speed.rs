//! Speed of the matrix product per weight type, shape and number of token rows, beside the machine's limits.
//!
//! `cargo run --release -p rocmforge-kernels --example matmul_speed -- [threads] [type] [isa] [MiB]`
//! GB/s counts packed weight bytes read once per product; GMAC/s counts multiply-adds. The weights of a shape
//! are repeated until they fill so many MiB (more than the caches unless told otherwise), as a model's layers do.

use kernels::KernelError;
use kernels::blocks::BlockType;
use kernels::cpu::{
    Accumulate, ActivationFormat, Activations, AlignedBuffer, Cpu, Isa, Matrix, Product, QuantizedRows,
    matmul, quantize_rows,
};
use std::time::Instant;

const SHAPES: [(usize, usize); 3] = [(2048, 2048), (5632, 2048), (2048, 5632)];
const TOKEN_ROWS: [usize; 7] = [1, 2, 4, 8, 16, 64, 512];
const WORKING_SET_MIB: usize = 256;
const SECONDS_PER_CASE: f64 = 0.25;

fn main() -> Result<(), KernelError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(2);
    let isa = args.get(2).map_or(Ok(Isa::detect()), |name| Isa::parse(name))?;
    if let Some(reason) = Isa::amx_refusal() {
        println!("amx is not used: {reason}");
    }
    let cpu = Cpu::new(isa, threads)?;
    let set_bytes = args.get(3).and_then(|arg| arg.parse().ok()).unwrap_or(WORKING_SET_MIB) << 20;
    println!("{} threads, {}, {} MiB", cpu.threads(), isa.name(), set_bytes >> 20);
    println!("read bandwidth {:.1} GB/s", read_bandwidth(&cpu, set_bytes)?);
    for ty in BlockType::ALL {
        if args.get(1).is_some_and(|name| name != ty.name() && name != "all") {
            continue;
        }
        for shape in SHAPES {
            measure(&cpu, ty, shape, set_bytes)?;
        }
    }
    Ok(())
}

/// Bytes that plausibly came from a file: every scale is a small half-precision number.
fn raw_weights(ty: BlockType, elements: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let mut raw = vec![0u8; elements / ty.block_len() * ty.block_bytes()];
    for block in raw.chunks_exact_mut(ty.block_bytes()) {
        block.fill_with(&mut next);
        let halves: &[usize] = match ty {
            BlockType::F32 => &[2],
            BlockType::F16 | BlockType::BF16 | BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0 => &[0],
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::Q6K => &[208],
        };
        for &at in halves {
            block[at + 1] = 0x20 | (block[at + 1] & 3);
        }
    }
    raw
}

fn measure(
    cpu: &Cpu,
    ty: BlockType,
    (rows, cols): (usize, usize),
    set_bytes: usize,
) -> Result<(), KernelError> {
    let raw = raw_weights(ty, rows * cols);
    let copies = set_bytes.div_ceil(raw.len());
    let start = Instant::now();
    let weights =
        (0..copies).map(|_| Matrix::pack(cpu, ty, rows, cols, &raw)).collect::<Result<Vec<_>, _>>()?;
    let pack_gb_s = (raw.len() * copies) as f64 / start.elapsed().as_secs_f64() / 1e9;
    print!("{:5} {rows:5}x{cols:<5} pack {pack_gb_s:4.1} GB/s |", ty.name());
    for tokens in TOKEN_ROWS {
        let seconds = seconds_per_product(cpu, &weights, tokens)?;
        let (gb_s, gmac_s) =
            (weights[0].bytes() as f64 / seconds / 1e9, (rows * cols * tokens) as f64 / seconds / 1e9);
        if tokens < 16 {
            print!(" {tokens}: {gb_s:4.1} GB/s {gmac_s:.0};");
        } else {
            print!(" {tokens}: {gmac_s:.0} GMAC/s;");
        }
    }
    println!();
    Ok(())
}

fn seconds_per_product(cpu: &Cpu, weights: &[Matrix], tokens: usize) -> Result<f64, KernelError> {
    let (rows, cols) = (weights[0].rows(), weights[0].cols());
    let x: Vec<f32> = (0..tokens * cols).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
    let mut quantized = QuantizedRows::new()?;
    let format = weights[0].activation_format();
    if format != ActivationFormat::F32 {
        quantize_rows(cpu, &x, (tokens, cols), format, &mut quantized)?;
    }
    let x = Activations {
        rows: tokens,
        cols,
        f32: &x,
        per32: (format == ActivationFormat::Int8Per32).then_some(&quantized),
        per256: (format == ActivationFormat::Int8Per256).then_some(&quantized),
    };
    let mut out = vec![0.0; tokens * rows];
    // The fastest of many products: this machine is rarely alone.
    let (mut best, start) = (f64::INFINITY, Instant::now());
    while start.elapsed().as_secs_f64() < SECONDS_PER_CASE {
        for weight in weights.iter() {
            let product = Instant::now();
            let accumulate = Accumulate::Set;
            matmul(cpu, &x, &mut [Product { weight, bias: None, accumulate, out: &mut out }])?;
            best = best.min(product.elapsed().as_secs_f64());
            if start.elapsed().as_secs_f64() > 2.0 * SECONDS_PER_CASE {
                break;
            }
        }
    }
    Ok(best)
}

/// The best rate at which the threads sum 4 MiB of a large buffer, the size of a weight.
fn read_bandwidth(cpu: &Cpu, set_bytes: usize) -> Result<f64, KernelError> {
    let mut buffer = AlignedBuffer::<[u64; 8]>::zeroed(set_bytes / 64, "a buffer to read")?;
    buffer.fill([3; 8]);
    let (mut best, start) = (0.0_f64, Instant::now());
    while start.elapsed().as_secs_f64() < 4.0 * SECONDS_PER_CASE {
        for part in buffer.chunks_exact(1 << 16) {
            let part_start = Instant::now();
            cpu.for_each_chunk(part.len(), 1 << 10, &|range| {
                let mut sums = [0u64; 8];
                for line in &part[range] {
                    for (sum, x) in sums.iter_mut().zip(line) {
                        *sum = sum.wrapping_add(*x);
                    }
                }
                std::hint::black_box(sums);
            });
            best = best.max(size_of_val(part) as f64 / part_start.elapsed().as_secs_f64() / 1e9);
        }
    }
    Ok(best)
}
