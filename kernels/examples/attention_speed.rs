//! How fast the float kernels run on this machine, beside its measured memory bandwidth and multiply-add peak.
//!
//! `cargo run --release -p rocmforge-kernels --example attention_speed [threads] [isa] [attention]`: with the last
//! word attention alone, over longer contexts too.

use std::hint::black_box;
use std::time::Instant;

use kernels::cpu::{
    AlignedBuffer, AttentionBatch, AttentionParams, AttentionSpan, BLOCK_TOKENS, Cpu, FloatMatrix, FloatType,
    Isa, KvCache, KvLayout, KvRows, KvSlot, KvType, float_matmul, gated_silu, paged_attention, rms_norm,
    store_kv,
};

/// The best time of some runs, in seconds: others share the machine.
fn best_s(mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || (begin.elapsed().as_secs_f64() < 0.4 && runs < 2000) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1999) as f32 / 1000.0 - 1.0).collect()
}

/// Bytes read a second, in passes of 16 MiB over 512 MiB.
fn memory_bandwidth(cpu: &Cpu) -> f64 {
    const PASS: usize = 2 << 20;
    let Ok(mut data) = AlignedBuffer::<u64>::zeroed(32 * PASS, "the bandwidth test") else { return f64::NAN };
    data.fill(1);
    let mut pass = 0;
    let seconds = best_s(|| {
        let data = &data[pass * PASS..(pass + 1) * PASS];
        cpu.for_each_chunk(PASS, 1 << 14, &|range| {
            let mut sums = [0u64; 32];
            for chunk in data[range].as_chunks::<32>().0 {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum ^= x;
                }
            }
            black_box(sums);
        });
        pass = (pass + 1) % 32;
    });
    (8 * PASS) as f64 / seconds
}

#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Sixteen chains of `rounds` multiply-adds in registers.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(rounds: usize) {
        let mut sums = [_mm512_set1_ps(1.0); 16];
        let factor = _mm512_set1_ps(black_box(0.5));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }

    /// As above with half the width.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(rounds: usize) {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let factor = _mm256_set1_ps(black_box(0.5));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
    }
}

/// Multiply-adds a second on all threads.
#[cfg(target_arch = "x86_64")]
fn multiply_add_peak(cpu: &Cpu) -> f64 {
    const ROUNDS: usize = 4_000;
    let lanes = match cpu.isa() {
        Isa::Portable => return f64::NAN,
        Isa::Avx2 => 12 * 8,
        Isa::Avx512 | Isa::Amx => 16 * 16,
    };
    let seconds = best_s(|| {
        cpu.for_each_chunk(cpu.threads() * 8, 1, &|_| match cpu.isa() {
            Isa::Portable => {}
            // SAFETY: `Cpu` holds instruction sets that are present only.
            Isa::Avx2 => unsafe { peak::avx2(ROUNDS) },
            // SAFETY: as above.
            Isa::Avx512 | Isa::Amx => unsafe { peak::avx512(ROUNDS) },
        });
    });
    (cpu.threads() * 8 * ROUNDS * lanes) as f64 / seconds
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add_peak(_: &Cpu) -> f64 {
    f64::NAN
}

struct Machine {
    bandwidth: f64,
    peak: f64,
}

impl Machine {
    fn report(&self, name: &str, seconds: f64, bytes: f64, multiply_adds: f64) {
        println!(
            "{name:<42} {:>9.1} µs {:>7.2} GB/s ({:>3.0} %) {:>7.1} GFMA/s ({:>3.0} %)",
            seconds * 1e6,
            bytes / seconds / 1e9,
            100.0 * bytes / seconds / self.bandwidth,
            multiply_adds / seconds / 1e9,
            100.0 * multiply_adds / seconds / self.peak,
        );
    }
}

/// Heads of a model and the type of its cache.
#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    kv_type: KvType,
}

/// Attention of `rows` rows at the end of each of `sequences` contexts, in turn over enough layers to miss caches.
fn attention(cpu: &Cpu, machine: &Machine, shape: Shape, [sequences, context, rows]: [usize; 3]) {
    let Shape { heads, kv_heads, head_dim, kv_type } = shape;
    let blocks = context.div_ceil(BLOCK_TOKENS);
    let block = KvLayout { layers: 1, blocks: 1, kv_heads, head_dim, kv_type };
    let layer_bytes = sequences * blocks * block.block_bytes();
    let layers = if rows == 1 { ((256 << 20) / layer_bytes).clamp(1, 64) } else { 2 };
    let layout = KvLayout { layers, blocks: sequences * blocks, kv_heads, head_dim, kv_type };
    let Ok(mut kv) = KvCache::new(layout) else { return println!("not enough memory") };
    let tables: Vec<Vec<u32>> =
        (0..sequences).map(|s| (0..blocks).map(|b| (b * sequences + s) as u32).collect()).collect();
    let values = ramp(context * kv_heads * head_dim);
    for table in &tables {
        let slots: Vec<KvSlot> = (0..context)
            .map(|i| KvSlot { block: table[i / BLOCK_TOKENS], offset: (i % BLOCK_TOKENS) as u32 })
            .collect();
        for layer in 0..layers {
            let stored = store_kv(cpu, &mut kv, layer, &KvRows { k: &values, v: &values, slots: &slots });
            assert!(stored.is_ok());
        }
    }
    let spans: Vec<AttentionSpan<'_>> = tables
        .iter()
        .enumerate()
        .map(|(i, table)| AttentionSpan {
            first_row: i * rows,
            rows,
            first_position: context - rows,
            block_table: table,
        })
        .collect();
    let q = ramp(sequences * rows * heads * head_dim);
    let mut out = vec![0.0; q.len()];
    let params =
        AttentionParams { heads, scale: 1.0 / (head_dim as f32).sqrt(), window: None, softcap: None };
    let mut layer = 0;
    let seconds = best_s(|| {
        let batch = AttentionBatch { q: &q, spans: &spans, params };
        let done = paged_attention(cpu, &kv, layer, &batch, &mut out);
        assert!(done.is_ok());
        layer = (layer + 1) % layers;
    });
    let seen = sequences * rows * (context - rows) + sequences * rows * (rows + 1) / 2;
    let name =
        format!("{kv_type:?} {heads}/{kv_heads}x{head_dim} {sequences} seq, ctx {context}, {rows} rows");
    machine.report(&name, seconds, layer_bytes as f64, (seen * heads * head_dim * 2) as f64);
}

fn products(cpu: &Cpu, machine: &Machine, kind: FloatType, tokens: usize) {
    let (rows, cols) = (2048, 5632);
    let raw: Vec<u8> = (0..rows * cols * kind.bytes()).map(|i| (i % 59) as u8).collect();
    let matrices: Vec<FloatMatrix> =
        (0..8).filter_map(|_| FloatMatrix::pack(cpu, kind, rows, cols, &raw).ok()).collect();
    let x = ramp(tokens * cols);
    let mut out = vec![0.0; tokens * rows];
    let mut next = 0;
    let seconds = best_s(|| {
        let done = float_matmul(cpu, &matrices[next % matrices.len()], &x, &mut out);
        assert!(done.is_ok());
        next += 1;
    });
    let name = format!("float_matmul {kind:?} 2048x5632, {tokens} tokens");
    machine.report(&name, seconds, raw.len() as f64, (rows * cols * tokens) as f64);
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(2);
    let isa = arguments.next().map_or(Ok(Isa::detect()), |name| Isa::parse(&name));
    let cpu = match isa.and_then(|isa| Cpu::new(isa, threads)) {
        Ok(cpu) => cpu,
        Err(error) => return eprintln!("{error}"),
    };
    let machine = Machine { bandwidth: memory_bandwidth(&cpu), peak: multiply_add_peak(&cpu) };
    println!("{threads} threads, {}", cpu.isa());
    println!("memory {:.1} GB/s, {:.1} GFMA/s", machine.bandwidth / 1e9, machine.peak / 1e9);
    let region = best_s(|| {
        for _ in 0..100 {
            cpu.for_each_chunk(threads, 1, &|range| {
                black_box(range);
            });
        }
    });
    println!("empty region {:.2} µs", region * 1e4);
    let alone = arguments.next().is_some_and(|word| word == "attention");
    for (heads, kv_heads, head_dim) in [(32, 4, 64), (32, 8, 128), (12, 12, 64)] {
        for kv_type in [KvType::F16, KvType::Q8_0] {
            let shape = Shape { heads, kv_heads, head_dim, kv_type };
            for work in [[1, 512, 1], [1, 4096, 1], [16, 512, 1], [1, 512, 512]] {
                attention(&cpu, &machine, shape, work);
            }
            if alone {
                for work in [[8, 4096, 1], [1, 32768, 1], [1, 4096, 512]] {
                    attention(&cpu, &machine, shape, work);
                }
            }
        }
    }
    if alone {
        return;
    }
    for kind in [FloatType::F16, FloatType::F32, FloatType::Bf16] {
        for tokens in [1, 4, 16, 128] {
            products(&cpu, &machine, kind, tokens);
        }
    }
    let (x, gain) = (ramp(2048 * 512), ramp(2048));
    let mut out = vec![0.0; x.len()];
    let seconds = best_s(|| drop(rms_norm(&cpu, &x, &gain, 1e-5, &mut out)));
    machine.report("rms_norm 512 rows of 2048", seconds, (8 * x.len()) as f64, 0.0);
    let up = ramp(x.len());
    let seconds = best_s(|| drop(gated_silu(&cpu, &x, &up, &mut out)));
    machine.report("gated_silu 512 rows of 2048", seconds, (12 * x.len()) as f64, 0.0);
}
