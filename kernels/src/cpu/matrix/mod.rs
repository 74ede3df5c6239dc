//! [`Matrix`]: a weight tensor, packed once at load for the kernels that will stream it.
//!
//! The loader calls [`Matrix::pack`] per tensor and may drop the mapped pages of the file behind it: nothing of
//! the raw bytes is kept. Rows come in groups of 16, padded with zero rows that no output ever shows. What it
//! deliberately does not do: change a code or a scale. Packing moves bits and widens six-bit scales to bytes.

pub(crate) mod formats;
pub(crate) mod layout;

use crate::KernelError;
use crate::blocks::{BlockType, RawBlock};
use crate::cpu::{ActivationFormat, AlignedBuffer, Cpu, DisjointMut, FloatMatrix, Isa};
use bytemuck::Zeroable;
use formats::Format;
use layout::GROUP_ROWS;

use super::matmul::tile::Group;

/// A weight tensor [rows, cols] in the layout of the kernels.
#[derive(Debug)]
pub struct Matrix {
    ty: BlockType,
    rows: usize,
    cols: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Float(FloatMatrix),
    /// All groups' codes, then from `heads_at` on all groups' scales.
    Quantized {
        packed: AlignedBuffer<u8>,
        heads_at: usize,
    },
}

/// Calls `$body` with `$format` standing for the [`Format`] of a quantized block type.
macro_rules! with_format {
    ($ty:expr, $format:ident => $body:expr, $float:ident => $float_body:expr) => {
        match $ty {
            BlockType::F32 => {
                let $float = $crate::cpu::FloatType::F32;
                $float_body
            }
            BlockType::F16 => {
                let $float = $crate::cpu::FloatType::F16;
                $float_body
            }
            BlockType::BF16 => {
                let $float = $crate::cpu::FloatType::Bf16;
                $float_body
            }
            BlockType::Q8_0 => {
                type $format = $crate::cpu::matrix::formats::Q8_0;
                $body
            }
            BlockType::Q4_0 => {
                type $format = $crate::cpu::matrix::formats::Q4_0;
                $body
            }
            BlockType::Q4_1 => {
                type $format = $crate::cpu::matrix::formats::Q4_1;
                $body
            }
            BlockType::Q5_0 => {
                type $format = $crate::cpu::matrix::formats::Q5_0;
                $body
            }
            BlockType::Q5_1 => {
                type $format = $crate::cpu::matrix::formats::Q5_1;
                $body
            }
            BlockType::Q4K => {
                type $format = $crate::cpu::matrix::formats::Q4K;
                $body
            }
            BlockType::Q5K => {
                type $format = $crate::cpu::matrix::formats::Q5K;
                $body
            }
            BlockType::Q6K => {
                type $format = $crate::cpu::matrix::formats::Q6K;
                $body
            }
        }
    };
}
pub(crate) use with_format;

impl Matrix {
    /// Packs a tensor. Shapes: `raw` is [rows, cols] in blocks of `ty`, row-major, as in the file.
    ///
    /// Errors: `cols` is not a whole number of blocks, `raw` has another length, or memory runs out.
    pub fn pack(
        cpu: &Cpu,
        ty: BlockType,
        rows: usize,
        cols: usize,
        raw: &[u8],
    ) -> Result<Matrix, KernelError> {
        let expected = ty.row_bytes(cols)?.saturating_mul(rows);
        if raw.len() != expected {
            return Err(KernelError::Length { what: "weight bytes", expected, actual: raw.len() });
        }
        let storage = with_format!(
            ty,
            F => pack_quantized::<F>(cpu, rows, cols / ty.block_len(), raw)?,
            float => Storage::Float(FloatMatrix::pack(cpu, float, rows, cols, raw)?)
        );
        Ok(Matrix { ty, rows, cols, storage })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type it was packed from.
    pub fn block_type(&self) -> BlockType {
        self.ty
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Float(matrix) => matrix.bytes(),
            Storage::Quantized { packed, .. } => packed.len(),
        }
    }

    /// What it is multiplied with.
    pub fn activation_format(&self) -> ActivationFormat {
        match self.ty.block_len() {
            1 => ActivationFormat::F32,
            32 => ActivationFormat::Int8Per32,
            _ => ActivationFormat::Int8Per256,
        }
    }

    /// Groups of 16 rows, the last one padded.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP_ROWS)
    }

    /// The packed blocks of one group, or `None` if the weights are floats. `F` is the format of `block_type`.
    pub(crate) fn group<F: Format>(&self, group: usize) -> Option<Group<'_, F>> {
        let Storage::Quantized { packed, heads_at } = &self.storage else { return None };
        let blocks = self.cols / F::Raw::LEN;
        let (codes, heads) = packed.split_at(*heads_at);
        let place = group * blocks..(group + 1) * blocks;
        Some(Group {
            codes: &bytemuck::cast_slice::<u8, F::Codes>(codes)[place.clone()],
            heads: &bytemuck::cast_slice::<u8, F::Head>(heads)[place],
        })
    }

    /// The weights as floats, if they are.
    pub(crate) fn float(&self) -> Option<&FloatMatrix> {
        match &self.storage {
            Storage::Float(matrix) => Some(matrix),
            Storage::Quantized { .. } => None,
        }
    }
}

/// Packs `rows` rows of `blocks` blocks each; `raw` holds exactly these.
fn pack_quantized<F: Format>(
    cpu: &Cpu,
    rows: usize,
    blocks: usize,
    raw: &[u8],
) -> Result<Storage, KernelError> {
    let groups = rows.div_ceil(GROUP_ROWS);
    // Saturating: padding a one-row tensor near the address space's end must be refused, not wrapped.
    let heads_at = groups.saturating_mul(blocks).saturating_mul(size_of::<F::Codes>());
    let heads_bytes = groups.saturating_mul(blocks).saturating_mul(size_of::<F::Head>());
    let mut packed = AlignedBuffer::<u8>::zeroed(heads_at.saturating_add(heads_bytes), "packed weights")?;
    let (codes, heads) = packed.split_at_mut(heads_at);
    let codes = DisjointMut::new(bytemuck::cast_slice_mut::<u8, F::Codes>(codes));
    let heads = DisjointMut::new(bytemuck::cast_slice_mut::<u8, F::Head>(heads));
    let raw: &[F::Raw] = bytemuck::cast_slice(raw);
    cpu.for_each_chunk(groups, 1, &|range| {
        for group in range {
            let place = group * blocks..(group + 1) * blocks;
            // SAFETY: each group is packed by one thread, and groups do not overlap.
            let codes = unsafe { codes.slice(place.clone()) };
            // SAFETY: as above.
            let heads = unsafe { heads.slice(place) };
            let first = group * GROUP_ROWS * blocks;
            let raw = &raw[first..raw.len().min(first + GROUP_ROWS * blocks)];
            pack_group::<F>(cpu.isa(), raw, codes, heads);
        }
    });
    Ok(Storage::Quantized { packed, heads_at })
}

/// Packs up to 16 rows, as many as `raw` holds; missing ones become zero rows.
#[inline(always)]
fn pack_group_with<F: Format>(raw: &[F::Raw], codes: &mut [F::Codes], heads: &mut [F::Head]) {
    let blocks = codes.len();
    let padding = F::Raw::zeroed();
    for (block, (codes, head)) in codes.iter_mut().zip(heads).enumerate() {
        let mut rows = [&padding; GROUP_ROWS];
        for (row, raw) in rows.iter_mut().zip(raw.chunks_exact(blocks)) {
            *row = &raw[block];
        }
        (*codes, *head) = F::pack(&rows);
    }
}

fn pack_group<F: Format>(isa: Isa, raw: &[F::Raw], codes: &mut [F::Codes], heads: &mut [F::Head]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` inside a `Cpu` is present on this processor, and all of these have AVX2.
        Isa::Avx2 | Isa::Avx512 | Isa::Amx => unsafe { pack_group_avx2::<F>(raw, codes, heads) },
        _ => pack_group_with::<F>(raw, codes, heads),
    }
}

/// The same code, for the compiler to vectorize better.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn pack_group_avx2<F: Format>(raw: &[F::Raw], codes: &mut [F::Codes], heads: &mut [F::Head]) {
    pack_group_with::<F>(raw, codes, heads);
}
