//! [`Matrix`]: a weight tensor on the device, packed while it is uploaded.
//!
//! The loader calls [`Matrix::load`] per tensor with bytes of the mapped file. Rows are packed into two pinned
//! buffers in turn: while the device copies one, the other is filled. Nothing of the raw bytes is kept.

use super::format::{Format, UNIT_COLUMNS};
use super::pack::pack_rows;
use super::{DeviceBuffer, Gpu, HipError, PinnedBuffer};
use crate::KernelError;
use crate::blocks::BlockType;
use crate::cpu::ActivationFormat;

/// Bytes of each pinned buffer: large enough that a copy is limited by the bus.
const CHUNK_BYTES: usize = 4 << 20;

/// A weight tensor [rows, cols] in the layout of the kernels.
#[derive(Debug)]
pub struct Matrix {
    pub(super) format: Format,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) weights: DeviceBuffer<u8>,
}

impl Matrix {
    /// Packs and uploads a tensor. Shapes: `raw` is [rows, cols] in blocks of `ty`, row-major, as in the file.
    /// `copied` gets the bytes of `raw` done so far, from time to time.
    ///
    /// Errors: no kernel knows `ty`, lengths do not fit, or the device has too little memory.
    pub fn load(
        gpu: &Gpu,
        (ty, rows, cols): (BlockType, usize, usize),
        raw: &[u8],
        copied: &mut dyn FnMut(usize),
    ) -> Result<Matrix, HipError> {
        let format = Format::of(ty)
            .ok_or_else(|| HipError::Unsupported { what: format!("weights of type {}", ty.name()) })?;
        let row_bytes = ty.row_bytes(cols)?;
        let expected = row_bytes.saturating_mul(rows);
        if raw.len() != expected {
            return Err(KernelError::Length { what: "weight bytes", expected, actual: raw.len() }.into());
        }
        for (what, value) in [("weight rows", rows), ("weight columns", cols)] {
            if value == 0 {
                return Err(KernelError::Empty { what }.into());
            }
            // Kernels count rows, columns and the bytes of a record in 32 bits.
            if value >= 1 << 28 {
                return Err(KernelError::OutOfRange { what, value, limit: 1 << 28 }.into());
            }
        }
        let together = format.rows_together();
        let packed = format.packed_bytes(cols);
        let bytes = rows.div_ceil(together).saturating_mul(packed);
        let mut weights = gpu.allocate::<u8>(bytes, "weights")?;
        let groups_at_once = (CHUNK_BYTES / packed).max(1);
        let len = packed * groups_at_once.min(rows.div_ceil(together));
        let mut staging = [PinnedBuffer::new(len)?, PinnedBuffer::new(len)?];
        let mut at = 0;
        for (chunk, raw) in raw.chunks(row_bytes * together * groups_at_once).enumerate() {
            let staging = &mut staging[chunk % 2];
            let len = (raw.len() / row_bytes).div_ceil(together) * packed;
            pack_rows(format, cols, raw, &mut staging.bytes_mut()?[..len]);
            staging.upload(gpu.stream(), len, &mut weights, at)?;
            at += len;
            copied(raw.len());
        }
        Ok(Matrix { format, rows, cols, weights })
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Device memory held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// What it is multiplied with.
    #[must_use]
    pub fn activation_format(&self) -> ActivationFormat {
        match self.format {
            Format::Float { .. } => ActivationFormat::F32,
            Format::Quantized(record) if record.block_units == 1 => ActivationFormat::Int8Per32,
            Format::Quantized(_) => ActivationFormat::Int8Per256,
        }
    }

    /// Units of a row.
    pub(super) fn units(&self) -> usize {
        self.cols / UNIT_COLUMNS
    }
}
