//! Token rows quantized to bytes, the other factor of every quantized product.
//!
//! Each block of 32 or 256 columns becomes signed codes within ±127 under one f32 scale, with the exact sums
//! the weight formats need. It depends on the values of its own block alone, so a token row quantizes to the
//! same bits in any batch. Written by [`quantize_rows`], once per input for all the weights that read it; read
//! by `tile`. Blocks of a tile of [`TILE_TOKENS`] token rows (the last tile may have fewer) are interleaved: all
//! rows' block 0, then all rows' block 1, so that a kernel walks one stream whatever the tile's width.

use super::TILE_TOKENS;
use crate::KernelError;
use crate::cpu::{AlignedBuffer, Cpu, DisjointMut, Isa};
use bytemuck::{Pod, Zeroable};

/// What a weight type is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActivationFormat {
    /// The floats themselves, for float weights.
    F32,
    /// Bytes with a scale per 32 columns, for Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1.
    Int8Per32,
    /// Bytes with a scale per 256 columns, for the K-quants.
    Int8Per256,
}

/// A block below this magnitude quantizes to zero: it keeps `127 / amax` finite, and f32 weights cannot lift
/// what is lost to anything that matters.
const SMALLEST_AMAX: f32 = f32::from_bits((127 - 100) << 23); // 2^-100
/// Adding 1.5 * 2^23 rounds a small f32 to an integer (nearest, ties to even) and leaves it in the low bits.
const ROUNDING: f32 = 12_582_912.0;

/// 32 columns of one token row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Block32 {
    /// Four codes a word, in memory order.
    pub(crate) codes: [i32; 8],
    pub(crate) scale: f32,
    /// `scale` times the sum of the codes.
    pub(crate) scaled_sum: f32,
    /// Minus the sum of the codes.
    pub(crate) negative_sum: i32,
}

/// 256 columns of one token row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Block256 {
    /// Four codes a word, in memory order.
    pub(crate) codes: [i32; 64],
    /// -32 times the sum of each 16 codes: what the offset of Q6_K adds.
    pub(crate) offset_sums: [i32; 16],
    /// The sum of each 32 codes, two 16-bit halves a word in memory order.
    pub(crate) sums: [i32; 4],
    pub(crate) scale: f32,
}

/// A quantized block that `quantize_rows` can make.
pub(crate) trait ActivationBlock: Pod + Send + Sync {
    /// Columns in a block.
    const LEN: usize;
    /// The buffer of `rows` that holds such blocks, if it is in this format.
    fn of(rows: &QuantizedRows) -> Option<&[Self]>;
    /// Quantizes `LEN` values.
    fn quantize(values: &[f32]) -> Self;
}

impl ActivationBlock for Block32 {
    const LEN: usize = 32;

    fn of(rows: &QuantizedRows) -> Option<&[Self]> {
        (rows.format == ActivationFormat::Int8Per32).then_some(&rows.per_32)
    }

    #[inline(always)]
    fn quantize(values: &[f32]) -> Self {
        let mut codes = [0i8; 32];
        let scale = quantize_codes(values, &mut codes);
        let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
        Block32 { codes: bytemuck::cast(codes), scale, scaled_sum: scale * sum as f32, negative_sum: -sum }
    }
}

impl ActivationBlock for Block256 {
    const LEN: usize = 256;

    fn of(rows: &QuantizedRows) -> Option<&[Self]> {
        (rows.format == ActivationFormat::Int8Per256).then_some(&rows.per_256)
    }

    #[inline(always)]
    fn quantize(values: &[f32]) -> Self {
        let mut codes = [0i8; 256];
        let scale = quantize_codes(values, &mut codes);
        let (mut offset_sums, mut sums) = ([0i32; 16], [0i16; 8]);
        for (i, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
            let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
            offset_sums[i] = -32 * sum;
            // 32 codes of at most 127 stay far inside 16 bits.
            sums[i / 2] += sum as i16;
        }
        Block256 { codes: bytemuck::cast(codes), offset_sums, sums: bytemuck::cast(sums), scale }
    }
}

/// Writes the codes of `values` and returns their scale, `amax / 127`. A block holding a NaN or an infinity gets
/// the scale NaN, so that it shows in every product; its codes are zero.
#[inline(always)]
fn quantize_codes(values: &[f32], codes: &mut [i8]) -> f32 {
    // Magnitudes compare as integers, NaN above infinity above all numbers: the same maximum in any order.
    let amax = values.iter().fold(0u32, |amax, x| amax.max(x.to_bits() & 0x7fff_ffff));
    let amax = f32::from_bits(amax);
    if !amax.is_finite() {
        return f32::NAN;
    }
    if amax < SMALLEST_AMAX {
        return 0.0;
    }
    let inverse = 127.0 / amax;
    for (code, x) in codes.iter_mut().zip(values) {
        let rounded = (x * inverse + ROUNDING).to_bits() as i32 - ROUNDING.to_bits() as i32;
        // The clamp never acts (127 plus two roundings stays below 127.5); kernels rely on codes above -128.
        *code = rounded.clamp(-127, 127) as i8;
    }
    amax / 127.0
}

/// Token rows in one of the byte formats. Grow-only: reuse one value for every step.
#[derive(Debug)]
pub struct QuantizedRows {
    format: ActivationFormat,
    rows: usize,
    cols: usize,
    per_32: AlignedBuffer<Block32>,
    per_256: AlignedBuffer<Block256>,
}

impl QuantizedRows {
    /// Holds no rows and no memory.
    pub fn new() -> Result<Self, KernelError> {
        Ok(QuantizedRows {
            format: ActivationFormat::Int8Per32,
            rows: 0,
            cols: 0,
            per_32: AlignedBuffer::zeroed(0, "activations")?,
            per_256: AlignedBuffer::zeroed(0, "activations")?,
        })
    }

    /// The format of the rows held.
    pub fn format(&self) -> ActivationFormat {
        self.format
    }

    /// Token rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of each row.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Quantizes token rows. Shapes: `x` [rows, cols] f32, row-major.
///
/// Errors: `x` has another length, `cols` is not a whole number of blocks, `format` is `F32` (which needs no
/// quantizing), or memory runs out.
pub fn quantize_rows(
    cpu: &Cpu,
    x: &[f32],
    (rows, cols): (usize, usize),
    format: ActivationFormat,
    out: &mut QuantizedRows,
) -> Result<(), KernelError> {
    let expected = rows.saturating_mul(cols);
    if x.len() != expected {
        return Err(KernelError::Length { what: "activations", expected, actual: x.len() });
    }
    // Until all is written `out` holds nothing.
    (out.rows, out.cols) = (0, 0);
    match format {
        ActivationFormat::F32 => {
            return Err(KernelError::NotQuantized);
        }
        ActivationFormat::Int8Per32 => quantize_into(cpu, x, (rows, cols), &mut out.per_32)?,
        ActivationFormat::Int8Per256 => quantize_into(cpu, x, (rows, cols), &mut out.per_256)?,
    }
    (out.format, out.rows, out.cols) = (format, rows, cols);
    Ok(())
}

fn quantize_into<B: ActivationBlock>(
    cpu: &Cpu,
    x: &[f32],
    (rows, cols): (usize, usize),
    buffer: &mut AlignedBuffer<B>,
) -> Result<(), KernelError> {
    if !cols.is_multiple_of(B::LEN) {
        return Err(KernelError::Multiple { what: "activation columns", value: cols, multiple: B::LEN });
    }
    let blocks = cols / B::LEN;
    // A tile behind the last row's blocks can be read: AMX loads whole tiles whatever their width.
    let held = (rows * blocks).saturating_add(TILE_TOKENS);
    if buffer.len() < held {
        *buffer = AlignedBuffer::zeroed(held, "activations")?;
    }
    if rows * blocks == 0 {
        return Ok(());
    }
    let out = DisjointMut::new(&mut buffer[..rows * blocks]);
    // A few thousand values a chunk: about what waking a thread costs.
    let grain = 8192_usize.div_ceil(cols);
    cpu.for_each_chunk(rows, grain, &|range| {
        for row in range {
            let tile = row - row % TILE_TOKENS;
            let width = TILE_TOKENS.min(rows - tile);
            let values = &x[row * cols..][..cols];
            let place = |block: usize| tile * blocks + block * width + (row - tile);
            quantize_row(cpu.isa(), values, |block, quantized: B| {
                let at = place(block);
                // SAFETY: (row, block) pairs have distinct places, and each row is quantized by one thread.
                let out = unsafe { out.slice(at..at + 1) };
                out[0] = quantized;
            });
        }
    });
    Ok(())
}

#[inline(always)]
fn quantize_row_with<B: ActivationBlock>(values: &[f32], mut put: impl FnMut(usize, B)) {
    for (block, values) in values.chunks_exact(B::LEN).enumerate() {
        put(block, B::quantize(values));
    }
}

fn quantize_row<B: ActivationBlock>(isa: Isa, values: &[f32], put: impl FnMut(usize, B)) {
    match isa {
        // SAFETY: an `Isa` inside a `Cpu` is present on this processor.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { quantize_row_avx512(values, put) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { quantize_row_avx2(values, put) },
        _ => quantize_row_with(values, put),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_row_avx2<B: ActivationBlock>(values: &[f32], put: impl FnMut(usize, B)) {
    quantize_row_with(values, put);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
fn quantize_row_avx512<B: ActivationBlock>(values: &[f32], put: impl FnMut(usize, B)) {
    quantize_row_with(values, put);
}
