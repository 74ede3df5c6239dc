//! Rows of a weight tensor as the device kernels read them.
//!
//! Called by [`super::Matrix`] while it uploads. Packing moves bits and widens six-bit scales to bytes; no code and
//! no scale changes its value. The layouts are those of `format`.

use super::format::{Format, GROUP_ROWS, Record, UNIT_COLUMNS};
use crate::blocks::{
    BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, RawBlock,
    sub_scale_and_min,
};

/// Packs the rows in `raw` (of `cols` columns, as in the file) into `out`, which has room for exactly these.
pub(super) fn pack_rows(format: Format, cols: usize, raw: &[u8], out: &mut [u8]) {
    match format {
        Format::Float { bytes, .. } => pack_floats(bytes, cols, raw, out),
        Format::Quantized(record) => match record.name {
            "q8_0" => pack_blocks::<BlockQ8_0>(&record, cols, raw, out),
            "q4_0" => pack_blocks::<BlockQ4_0>(&record, cols, raw, out),
            "q4_1" => pack_blocks::<BlockQ4_1>(&record, cols, raw, out),
            "q5_0" => pack_blocks::<BlockQ5_0>(&record, cols, raw, out),
            "q5_1" => pack_blocks::<BlockQ5_1>(&record, cols, raw, out),
            "q4_k" => pack_blocks::<BlockQ4K>(&record, cols, raw, out),
            "q5_k" => pack_blocks::<BlockQ5K>(&record, cols, raw, out),
            _ => pack_blocks::<BlockQ6K>(&record, cols, raw, out),
        },
    }
}

/// Sixteen rows interleaved in pieces of 16 bytes; missing rows and columns become zeros.
fn pack_floats(bytes: usize, cols: usize, raw: &[u8], out: &mut [u8]) {
    let row_bytes = cols * bytes;
    let pieces = row_bytes.div_ceil(16);
    for (group, raw) in out.chunks_exact_mut(pieces * GROUP_ROWS * 16).zip(raw.chunks(row_bytes * GROUP_ROWS))
    {
        group.fill(0);
        for (row, raw) in raw.chunks_exact(row_bytes).enumerate() {
            for (piece, from) in raw.chunks(16).enumerate() {
                let at = (piece * GROUP_ROWS + row) * 16;
                group[at..at + from.len()].copy_from_slice(from);
            }
        }
    }
}

/// The scales of a raw block, as bytes.
trait Scales: RawBlock {
    /// The sub-scales of unit `step`.
    fn sub(&self, step: usize) -> [u8; 2];
    /// Scale, and minimum where there is one; else only the first two bytes count.
    fn head(&self) -> [u8; 4];
}

macro_rules! scales {
    ($($block:ty: $self:ident, $step:ident => $sub:expr, $head:expr;)*) => {
        $(impl Scales for $block {
            fn sub(&$self, $step: usize) -> [u8; 2] {
                $sub
            }

            fn head(&$self) -> [u8; 4] {
                $head
            }
        })*
    };
}

fn one([a, b]: [u8; 2]) -> [u8; 4] {
    [a, b, 0, 0]
}

fn two([a, b]: [u8; 2], [c, d]: [u8; 2]) -> [u8; 4] {
    [a, b, c, d]
}

fn pair((scale, min): (u8, u8)) -> [u8; 2] {
    [scale, min]
}

scales! {
    BlockQ8_0: self, _step => [0; 2], one(self.scale);
    BlockQ4_0: self, _step => [0; 2], one(self.scale);
    BlockQ5_0: self, _step => [0; 2], one(self.scale);
    BlockQ4_1: self, _step => [0; 2], two(self.scale, self.min);
    BlockQ5_1: self, _step => [0; 2], two(self.scale, self.min);
    BlockQ4K: self, step => pair(sub_scale_and_min(&self.sub_scales, step)), two(self.scale, self.min);
    BlockQ5K: self, step => pair(sub_scale_and_min(&self.sub_scales, step)), two(self.scale, self.min);
    BlockQ6K: self, step => [self.sub_scales[2 * step] as u8, self.sub_scales[2 * step + 1] as u8], one(self.scale);
}

fn pack_blocks<B: Scales>(record: &Record, cols: usize, raw: &[u8], out: &mut [u8]) {
    let blocks: &[B] = bytemuck::cast_slice(raw);
    let units = cols / UNIT_COLUMNS;
    let row_bytes = Format::Quantized(*record).packed_bytes(cols);
    for (row, blocks) in out.chunks_exact_mut(row_bytes).zip(blocks.chunks_exact(cols / B::LEN)) {
        row.fill(0);
        for (index, block) in blocks.iter().enumerate() {
            for step in 0..record.block_units {
                let unit = index * record.block_units + step;
                pack_codes(record, units, unit, block.codes(step), row);
                let at = record.sub_at(units) + unit * record.sub_bytes;
                row[at..at + record.sub_bytes].copy_from_slice(&block.sub(step)[..record.sub_bytes]);
            }
            let at = record.head_at(units) + index * record.head_bytes;
            row[at..at + record.head_bytes].copy_from_slice(&block.head()[..record.head_bytes]);
        }
    }
}

/// Puts the codes of unit `unit` into their planes.
fn pack_codes(record: &Record, units: usize, unit: usize, codes: [u8; UNIT_COLUMNS], row: &mut [u8]) {
    if record.low_planes == 2 {
        // Eight bits: the reader of raw blocks counts them from -128, the kernels want signed bytes.
        let signed = codes.map(|code| code ^ 0x80);
        row[unit * 16..][..16].copy_from_slice(&signed[..16]);
        row[(units + unit) * 16..][..16].copy_from_slice(&signed[16..]);
        return;
    }
    for (i, byte) in row[unit * 16..][..16].iter_mut().enumerate() {
        *byte = codes[i] & 0x0f | (codes[16 + i] & 0x0f) << 4;
    }
    // What lies above the nibbles: one or two bits of each column, those of quad q side by side.
    let bits = record.high_bytes / 4;
    let high = &mut row[record.high_at(units) + unit * record.high_bytes..][..record.high_bytes];
    for (column, code) in codes.into_iter().enumerate() {
        let (quad, byte) = (column / 4, column % 4);
        match bits {
            0 => {}
            1 => high[byte] |= (code >> 4 & 1) << quad,
            _ => high[quad / 4 * 4 + byte] |= (code >> 4 & 3) << (2 * (quad % 4)),
        }
    }
}
