//! The ggml block types that weights come in: their sizes, their bit layouts, and how they become f32.
//!
//! Callers are the loader (sizes), `inspect` and embedding look-ups (`dequantize`) and the packers of the
//! compute kernels (the raw block structs). What holds always: `dequantize` gives the very bits that ggml's
//! `to_float` gives. Nothing here multiplies matrices; that is `crate::cpu`.
//!
//! Source of the formats: llama.cpp, `ggml/src/ggml-common.h` (block structs) and `ggml-quants.c`
//! (`dequantize_row_*`), commit 0c1e570; type ids from `ggml/include/ggml.h` (`enum ggml_type`).

mod classic;
mod k_quants;

pub use classic::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
pub(crate) use classic::{Q4_0_OFFSET, Q5_0_OFFSET, Q8_0_OFFSET};
pub(crate) use k_quants::sub_scale_and_min;
pub use k_quants::{BlockQ4K, BlockQ5K, BlockQ6K};

use crate::KernelError;

/// Columns whose codes are unpacked together: the block of the classic types, a sub-block of the K-quants.
pub const CODES_PER_STEP: usize = 32;

/// A tensor element type of GGUF that these kernels can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 32-bit float.
    F32,
    /// IEEE half precision float.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// 32 signed bytes and a scale.
    Q8_0,
    /// 32 four-bit codes around 8 and a scale.
    Q4_0,
    /// 32 four-bit codes, a scale and a minimum.
    Q4_1,
    /// 32 five-bit codes around 16 and a scale.
    Q5_0,
    /// 32 five-bit codes, a scale and a minimum.
    Q5_1,
    /// 256 four-bit codes; per 32 a six-bit scale and minimum.
    Q4K,
    /// 256 five-bit codes; per 32 a six-bit scale and minimum.
    Q5K,
    /// 256 six-bit codes around 32; per 16 an eight-bit scale.
    Q6K,
}

impl BlockType {
    /// Every type, in the order of the declaration.
    pub const ALL: [BlockType; 11] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::BF16,
        BlockType::Q8_0,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
    ];

    /// The type with this number in a GGUF tensor table, or `None` when these kernels cannot read it.
    pub fn from_ggml_id(id: u32) -> Option<BlockType> {
        Some(match id {
            0 => BlockType::F32,
            1 => BlockType::F16,
            2 => BlockType::Q4_0,
            3 => BlockType::Q4_1,
            6 => BlockType::Q5_0,
            7 => BlockType::Q5_1,
            8 => BlockType::Q8_0,
            12 => BlockType::Q4K,
            13 => BlockType::Q5K,
            14 => BlockType::Q6K,
            30 => BlockType::BF16,
            _ => return None,
        })
    }

    /// The name ggml prints.
    pub fn name(self) -> &'static str {
        match self {
            BlockType::F32 => "F32",
            BlockType::F16 => "F16",
            BlockType::BF16 => "BF16",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
        }
    }

    /// Elements in one block.
    pub fn block_len(self) -> usize {
        match self {
            BlockType::F32 | BlockType::F16 | BlockType::BF16 => 1,
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => 32,
            BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            BlockType::F32 => 4,
            BlockType::F16 | BlockType::BF16 => 2,
            BlockType::Q8_0 => size_of::<BlockQ8_0>(),
            BlockType::Q4_0 => size_of::<BlockQ4_0>(),
            BlockType::Q4_1 => size_of::<BlockQ4_1>(),
            BlockType::Q5_0 => size_of::<BlockQ5_0>(),
            BlockType::Q5_1 => size_of::<BlockQ5_1>(),
            BlockType::Q4K => size_of::<BlockQ4K>(),
            BlockType::Q5K => size_of::<BlockQ5K>(),
            BlockType::Q6K => size_of::<BlockQ6K>(),
        }
    }

    /// Bytes of a row of `cols` elements. Errors: `cols` is not a whole number of blocks, or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Result<usize, KernelError> {
        let multiple = self.block_len();
        if !cols.is_multiple_of(multiple) {
            return Err(KernelError::Multiple { what: "row length", value: cols, multiple });
        }
        (cols / multiple).checked_mul(self.block_bytes()).ok_or(KernelError::OutOfRange {
            what: "row length",
            value: cols,
            limit: usize::MAX / self.block_bytes(),
        })
    }
}

/// A quantized block as it lies in the file.
///
/// Implementors are `#[repr(C)]` with alignment 1 (two-byte fields are byte pairs), so that a mapped file can
/// be viewed as blocks wherever the tensor begins.
pub(crate) trait RawBlock: bytemuck::Pod + Sync {
    /// Elements in one block.
    const LEN: usize;

    /// The unsigned codes of elements `32 * step ..`, before offset, scale and minimum.
    fn codes(&self, step: usize) -> [u8; CODES_PER_STEP];

    /// The f32 values of the whole block; `out` has `LEN` elements.
    fn dequantize(&self, out: &mut [f32]);
}

/// Turns raw blocks into f32. Shapes: `raw` holds exactly as many blocks as `out` needs.
/// Errors: `out` is not a whole number of blocks, or `raw` has another length than that many blocks.
/// Source: `dequantize_row_*` of ggml-quants.c; the same bits.
pub fn dequantize(ty: BlockType, raw: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    let expected = ty.row_bytes(out.len())?;
    if raw.len() != expected {
        return Err(KernelError::Length { what: "raw blocks", expected, actual: raw.len() });
    }
    match ty {
        BlockType::F32 => each(raw, out, f32::from_le_bytes),
        BlockType::F16 => each(raw, out, half_to_f32),
        BlockType::BF16 => {
            each(raw, out, |b: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
        }
        BlockType::Q8_0 => dequantize_blocks::<BlockQ8_0>(raw, out),
        BlockType::Q4_0 => dequantize_blocks::<BlockQ4_0>(raw, out),
        BlockType::Q4_1 => dequantize_blocks::<BlockQ4_1>(raw, out),
        BlockType::Q5_0 => dequantize_blocks::<BlockQ5_0>(raw, out),
        BlockType::Q5_1 => dequantize_blocks::<BlockQ5_1>(raw, out),
        BlockType::Q4K => dequantize_blocks::<BlockQ4K>(raw, out),
        BlockType::Q5K => dequantize_blocks::<BlockQ5K>(raw, out),
        BlockType::Q6K => dequantize_blocks::<BlockQ6K>(raw, out),
    }
    Ok(())
}

fn each<const BYTES: usize>(raw: &[u8], out: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    for (bytes, y) in raw.as_chunks::<BYTES>().0.iter().zip(out) {
        *y = value(*bytes);
    }
}

fn dequantize_blocks<B: RawBlock>(raw: &[u8], out: &mut [f32]) {
    let blocks: &[B] = bytemuck::cast_slice(raw);
    for (block, y) in blocks.iter().zip(out.chunks_exact_mut(B::LEN)) {
        block.dequantize(y);
    }
}

/// The value of a little-endian half precision float.
pub(crate) fn half_to_f32(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}
