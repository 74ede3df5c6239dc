//! Products with weights kept as floats: F32, F16 and BF16 matrices.
//!
//! [`FloatMatrix::pack`] interleaves sixteen output rows, so that one vector holds one column of sixteen rows and
//! a lane is an output. Activations stay f32. Called by `matmul` inside its parallel region, and directly through
//! [`float_matmul`]. The order of every sum: columns are cut into blocks of [`COLUMNS_PER_BLOCK`]; inside a block
//! products are accumulated by fused multiply-add in column order from zero; block sums are added in order. The
//! number of tokens computed together changes no bit.

mod tile;

use std::ops::Range;

use super::math::LANES;
use super::shape::{expect_below, expect_len, rows_of};
use super::{AlignedBuffer, Cpu, DisjointMut};
use crate::KernelError;
use tile::Multiply;

/// Output rows of a group: one per vector lane.
pub(crate) const ROWS_PER_GROUP: usize = LANES;
/// Columns accumulated apart: sixteen times smaller rounding errors than one long sum over 65,536 columns, and
/// the weights of a block stay in the first-level cache while the tokens pass over them.
const COLUMNS_PER_BLOCK: usize = 256;
/// Row groups a thread claims at once: 64 outputs, so that a one-token product has four independent sums.
const GROUPS_PER_CHUNK: usize = 4;
/// Tokens that pass over the weights of a chunk together: their outputs stay in the first-level cache.
const TOKENS_PER_PANEL: usize = 64;

/// How a weight is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Bytes of one weight.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }
}

/// A weight matrix [rows, cols], packed for [`float_matmul`].
#[derive(Debug)]
pub struct FloatMatrix {
    rows: usize,
    cols: usize,
    weights: Weights,
}

/// `[row group][column][16 rows]`; rows past the last are zero.
#[derive(Debug)]
enum Weights {
    F32(AlignedBuffer<f32>),
    F16(AlignedBuffer<u16>),
    Bf16(AlignedBuffer<u16>),
}

impl FloatMatrix {
    /// Packs `raw`, the rows one after another as in a GGUF file.
    ///
    /// Errors: [`KernelError::Length`] unless `raw` has rows · cols weights; [`KernelError::Empty`] for no
    /// columns; [`KernelError::OutOfMemory`].
    pub fn pack(
        cpu: &Cpu,
        kind: FloatType,
        rows: usize,
        cols: usize,
        raw: &[u8],
    ) -> Result<Self, KernelError> {
        if cols == 0 {
            return Err(KernelError::Empty { what: "columns of a float matrix" });
        }
        let len = rows.saturating_mul(cols).saturating_mul(kind.bytes());
        expect_len("bytes of a float matrix", raw.len(), len)?;
        let padded = rows.next_multiple_of(ROWS_PER_GROUP).saturating_mul(cols);
        let what = "a float matrix";
        let weights = match kind {
            FloatType::F32 => {
                let mut weights = AlignedBuffer::zeroed(padded, what)?;
                interleave(cpu, &mut weights, cols, raw, f32::from_le_bytes);
                Weights::F32(weights)
            }
            FloatType::F16 | FloatType::Bf16 => {
                let mut weights = AlignedBuffer::zeroed(padded, what)?;
                interleave(cpu, &mut weights, cols, raw, u16::from_le_bytes);
                if kind == FloatType::F16 { Weights::F16(weights) } else { Weights::Bf16(weights) }
            }
        };
        Ok(FloatMatrix { rows, cols, weights })
    }

    /// Output rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the length of an activation row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Groups of sixteen output rows, the last perhaps padded.
    #[must_use]
    pub fn row_groups(&self) -> usize {
        self.rows.div_ceil(ROWS_PER_GROUP)
    }

    /// Memory of the packed weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::F32(weights) => size_of_val::<[f32]>(weights),
            Weights::F16(weights) | Weights::Bf16(weights) => size_of_val::<[u16]>(weights),
        }
    }

    /// Computes the outputs of row groups `groups` for every token of `x`, on the calling thread.
    ///
    /// Shapes: `x` [tokens, cols], `out` [tokens, groups] of sixteen rows; rows past the last come out zero.
    pub(crate) fn multiply_groups(
        &self,
        cpu: &Cpu,
        x: &[f32],
        groups: Range<usize>,
        out: &mut [[f32; ROWS_PER_GROUP]],
    ) -> Result<(), KernelError> {
        let tokens = rows_of("activations", x.len(), self.cols)?;
        expect_len("float product tile", out.len(), tokens.saturating_mul(groups.len()))?;
        expect_below("end of row groups", groups.end, self.row_groups() + 1)?;
        let cols = self.cols;
        let span = groups.start * LANES * cols..groups.end * LANES * cols;
        match &self.weights {
            Weights::F32(w) => {
                cpu.launch(Multiply::<tile::F32> { weights: w[span].as_chunks().0, x, cols, out });
            }
            Weights::F16(w) => {
                cpu.launch(Multiply::<tile::F16> { weights: w[span].as_chunks().0, x, cols, out });
            }
            Weights::Bf16(w) => {
                cpu.launch(Multiply::<tile::Bf16> { weights: w[span].as_chunks().0, x, cols, out });
            }
        }
        Ok(())
    }
}

/// `out[t][r] = Σ_c weight[r][c] · x[t][c]`.
///
/// Shapes: `x` [tokens, cols], `out` [tokens, rows]; f32, row-major. Errors: [`KernelError`] where lengths do
/// not fit.
pub fn float_matmul(cpu: &Cpu, matrix: &FloatMatrix, x: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    let (rows, cols) = (matrix.rows, matrix.cols);
    let tokens = rows_of("activations", x.len(), cols)?;
    expect_len("matmul output", out.len(), tokens.saturating_mul(rows))?;
    let shared = DisjointMut::new(out);
    cpu.for_each_chunk(matrix.row_groups(), GROUPS_PER_CHUNK, &|groups| {
        let outputs = groups.start * LANES..rows.min(groups.end * LANES);
        let mut tile = vec![[0.0; LANES]; groups.len() * tokens.min(TOKENS_PER_PANEL)];
        for start in (0..tokens).step_by(TOKENS_PER_PANEL) {
            let end = tokens.min(start + TOKENS_PER_PANEL);
            let tile = &mut tile[..(end - start) * groups.len()];
            let done = matrix.multiply_groups(cpu, &x[start * cols..end * cols], groups.clone(), tile);
            debug_assert!(done.is_ok(), "lengths were checked above");
            for (token, values) in (start..end).zip(tile.chunks_exact(groups.len())) {
                // SAFETY: the chunks of one region are disjoint, and so are their columns.
                let out = unsafe { shared.slice(token * rows + outputs.start..token * rows + outputs.end) };
                out.copy_from_slice(&values.as_flattened()[..outputs.len()]);
            }
        }
    });
    Ok(())
}

/// Writes weight (row, column) of `raw` to its place among sixteen interleaved rows.
fn interleave<T: bytemuck::Pod + Send + Sync, const N: usize>(
    cpu: &Cpu,
    weights: &mut [T],
    cols: usize,
    raw: &[u8],
    decode: impl Fn([u8; N]) -> T + Sync,
) {
    let (raw, _) = raw.as_chunks::<N>();
    let groups = weights.len() / (cols * LANES);
    let shared = DisjointMut::new(weights);
    cpu.for_each_chunk(groups, 1, &|chunk| {
        for group in chunk {
            // SAFETY: a group belongs to one chunk only.
            let packed = unsafe { shared.slice(group * cols * LANES..(group + 1) * cols * LANES) };
            let rows = raw[group * LANES * cols..].chunks_exact(cols).take(LANES);
            // Sixty-four columns at a time, so that the packed lines written stay in cache from row to row.
            for start in (0..cols).step_by(64) {
                for (lane, row) in rows.clone().enumerate() {
                    let columns = start..cols.min(start + 64);
                    let packed = packed[start * LANES..].chunks_exact_mut(LANES);
                    for (column, weight) in packed.zip(&row[columns]) {
                        column[lane] = decode(*weight);
                    }
                }
            }
        }
    });
}
