//! The weight types that the device kernels know, and the bytes of a row's record.
//!
//! `include/rf/formats.h` and `include/rf/float_weights.h` describe the same layouts for the kernels; `pack` writes
//! them.

use crate::blocks::BlockType;

/// Rows of float weights that are interleaved.
pub(super) const GROUP_ROWS: usize = 16;
/// Columns of a unit.
pub(super) const UNIT_COLUMNS: usize = 32;
/// Bytes of a piece: what a lane loads at once.
const PIECE_BYTES: usize = 16;

/// How a type lies on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Floats of so many bytes, sixteen rows interleaved.
    Float {
        /// In kernels' names.
        name: &'static str,
        bytes: usize,
    },
    /// A record per row.
    Quantized(Record),
}

/// The bytes of each unit and block in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// In kernels' names.
    pub(super) name: &'static str,
    /// Units under one scale, for weights and activations.
    pub(super) block_units: usize,
    /// Planes of 16 bytes a unit.
    pub(super) low_planes: usize,
    /// High bits of a unit.
    pub(super) high_bytes: usize,
    /// Sub-scales of a unit.
    pub(super) sub_bytes: usize,
    /// Scales of a block.
    pub(super) head_bytes: usize,
}

const fn record(name: &'static str, block_units: usize, bytes: [usize; 4]) -> Format {
    let [low_planes, high_bytes, sub_bytes, head_bytes] = bytes;
    Format::Quantized(Record { name, block_units, low_planes, high_bytes, sub_bytes, head_bytes })
}

impl Format {
    /// The layout of a type, or `None` if no kernel knows it.
    pub(super) fn of(ty: BlockType) -> Option<Format> {
        // By name: a type added for the CPU is refused here rather than a gap that stops the build.
        Some(match ty.name() {
            "F32" => Format::Float { name: "f32", bytes: 4 },
            "F16" => Format::Float { name: "f16", bytes: 2 },
            "BF16" => Format::Float { name: "bf16", bytes: 2 },
            "Q8_0" => record("q8_0", 1, [2, 0, 0, 2]),
            "Q4_0" => record("q4_0", 1, [1, 0, 0, 2]),
            "Q4_1" => record("q4_1", 1, [1, 0, 0, 4]),
            "Q5_0" => record("q5_0", 1, [1, 4, 0, 2]),
            "Q5_1" => record("q5_1", 1, [1, 4, 0, 4]),
            "Q4_K" => record("q4_k", 8, [1, 0, 2, 4]),
            "Q5_K" => record("q5_k", 8, [1, 4, 2, 4]),
            "Q6_K" => record("q6_k", 8, [1, 8, 2, 2]),
            _ => return None,
        })
    }

    /// The type's name in kernels' names.
    pub(super) fn name(self) -> &'static str {
        match self {
            Format::Float { name, .. } => name,
            Format::Quantized(record) => record.name,
        }
    }

    /// Rows that are packed together.
    pub(super) fn rows_together(self) -> usize {
        match self {
            Format::Float { .. } => GROUP_ROWS,
            Format::Quantized(_) => 1,
        }
    }

    /// Device bytes of [`Self::rows_together`] rows of `cols` columns.
    pub(super) fn packed_bytes(self, cols: usize) -> usize {
        match self {
            Format::Float { bytes, .. } => (cols * bytes).div_ceil(PIECE_BYTES) * PIECE_BYTES * GROUP_ROWS,
            Format::Quantized(record) => record.bytes(cols / UNIT_COLUMNS),
        }
    }
}

impl Record {
    /// Where the high bits begin in a record of `units` units.
    pub(super) fn high_at(&self, units: usize) -> usize {
        units * PIECE_BYTES * self.low_planes
    }

    /// Where the sub-scales begin.
    pub(super) fn sub_at(&self, units: usize) -> usize {
        self.high_at(units) + units * self.high_bytes
    }

    /// Where the scales begin.
    pub(super) fn head_at(&self, units: usize) -> usize {
        self.sub_at(units) + units * self.sub_bytes
    }

    /// Bytes of the record.
    fn bytes(&self, units: usize) -> usize {
        (self.head_at(units) + units / self.block_units * self.head_bytes).next_multiple_of(PIECE_BYTES)
    }
}
