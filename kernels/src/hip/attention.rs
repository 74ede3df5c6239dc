//! Attention: how a step's rows are cut into tiles and partitions, and the two kernels that compute them.
//!
//! A [`AttentionPlan`] is made once a step and used by all its layers. Its cut decides nothing but speed: partitions
//! of positions lie at fixed places, and each (row, head) pair is computed by itself (promise P3).

use super::args::{AttentionArgs, AttentionTile};
use super::kv_cache::{KvCache, expect_below};
use super::{DeviceBuffer, Gpu, HipError, Rows};
use crate::KernelError;
use crate::cpu::{AttentionSpan, BLOCK_TOKENS};
use std::ops::Range;

/// Positions that share one maximum, as on the CPU.
const PARTITION: usize = 512;
/// (row, head) pairs of a tile in the two variants of the kernel.
const PAIRS_FEW: usize = 4;
const PAIRS_MANY: usize = 16;
/// Dimensions of a head in the smaller variant.
const DIM_SMALL: usize = 128;
/// Bytes of records made before they are merged; more partitions go in several turns.
const RECORD_BYTES: usize = 64 << 20;

/// Heads, and what a row may see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads, a multiple of the key/value heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor of q·k.
    pub scale: f32,
    /// See only the last so many positions, the own one included.
    pub window: Option<u32>,
    /// Replace a score s by c · tanh(s / c).
    pub softcap: Option<f32>,
}

/// Tiles and units computed and merged together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turn {
    tiles: Range<usize>,
    units: Range<usize>,
}

/// The cut of one step, on the device.
#[derive(Debug)]
pub struct AttentionPlan {
    shape: AttentionShape,
    rows: usize,
    pairs: usize,
    /// The largest block of any table, and one more.
    blocks: usize,
    turns: Vec<Turn>,
    block_tables: DeviceBuffer<u32>,
    tiles: DeviceBuffer<AttentionTile>,
    units: DeviceBuffer<u32>,
    records: DeviceBuffer<f32>,
}

impl AttentionPlan {
    /// Cuts the rows of `spans`, which are in ascending order of rows and cover all of them.
    ///
    /// Errors: heads or tables do not fit, or the device has too little memory.
    pub fn new(
        gpu: &Gpu,
        shape: AttentionShape,
        spans: &[AttentionSpan<'_>],
    ) -> Result<AttentionPlan, HipError> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(
                KernelError::Multiple { what: "query heads", value: heads, multiple: kv_heads }.into()
            );
        }
        let group = heads / kv_heads;
        let few = spans.iter().all(|span| span.rows * group <= PAIRS_FEW);
        let pairs = if few { PAIRS_FEW } else { PAIRS_MANY };
        let record_bytes = kv_heads * pairs * (head_dim.next_multiple_of(8) + 2) * size_of::<f32>();
        let mut cut = Cut { units_at_once: (RECORD_BYTES / record_bytes).max(1), ..Cut::default() };
        let mut rows = 0;
        for span in spans {
            if span.first_row != rows {
                let (expected, actual) = (rows, span.first_row);
                return Err(KernelError::Length { what: "first row of a span", expected, actual }.into());
            }
            rows += span.rows;
            cut.add(span, (shape.window, group, pairs))?;
        }
        cut.end_turn();
        let longest = cut.turns.iter().map(|turn| turn.units.len()).max().unwrap_or(0);
        Ok(AttentionPlan {
            shape,
            rows,
            pairs,
            blocks: cut.block_tables.iter().map(|&block| block as usize + 1).max().unwrap_or(0),
            turns: cut.turns,
            block_tables: gpu.upload(&cut.block_tables, "block tables")?,
            tiles: gpu.upload(&cut.tiles, "attention tiles")?,
            units: gpu.upload(&cut.units, "attention units")?,
            records: gpu.allocate(longest * record_bytes / size_of::<f32>(), "attention records")?,
        })
    }

    /// The shape it was made for.
    #[must_use]
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }
}

/// A plan in the making.
#[derive(Default)]
struct Cut {
    units_at_once: usize,
    block_tables: Vec<u32>,
    tiles: Vec<AttentionTile>,
    /// Tile and partition, two words each.
    units: Vec<u32>,
    turns: Vec<Turn>,
}

impl Cut {
    fn turn_start(&self) -> (usize, usize) {
        self.turns.last().map_or((0, 0), |turn| (turn.tiles.end, turn.units.end))
    }

    fn end_turn(&mut self) {
        let (tile, unit) = self.turn_start();
        if tile < self.tiles.len() {
            self.turns.push(Turn { tiles: tile..self.tiles.len(), units: unit..self.units.len() / 2 });
        }
    }

    fn add(
        &mut self,
        span: &AttentionSpan<'_>,
        (window, group, pairs): (Option<u32>, usize, usize),
    ) -> Result<(), HipError> {
        let blocks = (span.first_position + span.rows).div_ceil(BLOCK_TOKENS);
        expect_below("blocks of a span", blocks, span.block_table.len() + 1)?;
        let table = self.block_tables.len() as u32;
        self.block_tables.extend_from_slice(&span.block_table[..blocks]);
        for first_pair in (0..span.rows * group).step_by(pairs) {
            let here = pairs.min(span.rows * group - first_pair);
            let first = span.first_position + first_pair / group;
            let last = span.first_position + (first_pair + here - 1) / group;
            let seen_from = window.map_or(0, |window| (first + 1).saturating_sub(window.max(1) as usize));
            let partitions = seen_from / PARTITION..last / PARTITION + 1;
            if self.units.len() / 2 - self.turn_start().1 + partitions.len() > self.units_at_once {
                self.end_turn();
            }
            self.tiles.push(AttentionTile {
                first_row: span.first_row as u32,
                first_position: span.first_position as u32,
                first_pair: first_pair as u32,
                pairs: here as u32,
                table,
                first_unit: (self.units.len() / 2 - self.turn_start().1) as u32,
                units: partitions.len() as u32,
                reserved: 0,
            });
            for partition in partitions {
                self.units.extend([self.tiles.len() as u32 - 1, partition as u32]);
            }
        }
        Ok(())
    }
}

impl Gpu {
    /// Attends with each row of `q` [rows, heads · head_dim] to the positions it sees in `layer`; `out` as `q`.
    pub fn paged_attention(
        &self,
        (cache, layer): (&KvCache, usize),
        plan: &AttentionPlan,
        q: &Rows,
        out: &mut Rows,
    ) -> Result<(), HipError> {
        let (shape, layout) = (&plan.shape, cache.layout());
        out.prepare(self, plan.rows)?;
        let width = shape.heads * shape.head_dim;
        let shapes = [
            ("key/value heads", layout.kv_heads, shape.kv_heads),
            ("head dimension", layout.head_dim, shape.head_dim),
            ("rows of queries", plan.rows, q.rows()),
            ("width of queries", width, q.width()),
            ("width of attention", width, out.width()),
        ];
        for (what, expected, actual) in shapes {
            if expected != actual {
                return Err(KernelError::Length { what, expected, actual }.into());
            }
        }
        expect_below("largest kv block", plan.blocks, layout.blocks + 1)?;
        let dim = if shape.head_dim <= DIM_SMALL { DIM_SMALL } else { 2 * DIM_SMALL };
        let partial = format!("paged_attention_p{}_d{dim}_{}", plan.pairs, layout.element.name());
        let merge = format!("merge_attention_p{}", plan.pairs);
        for turn in &plan.turns {
            let args = AttentionArgs {
                q: q.address(),
                cache: cache.layer_address(layer)?,
                block_tables: plan.block_tables.address(),
                tiles: plan.tiles.address(),
                units: plan.units.address_of(2 * turn.units.start),
                records: plan.records.address(),
                out: out.address(),
                heads: shape.heads as u32,
                kv_heads: shape.kv_heads as u32,
                head_dim: shape.head_dim as u32,
                window: shape.window.map_or(0, |window| window.max(1)),
                scale: shape.scale,
                softcap: shape.softcap.unwrap_or(0.0),
            };
            // SAFETY: shapes were checked above, all blocks lie in the cache, records have room for the longest turn.
            unsafe { self.launch(&partial, [turn.units.len(), shape.kv_heads], &args) }?;
            let args = AttentionArgs { tiles: plan.tiles.address_of(turn.tiles.start), ..args };
            // SAFETY: as above; the tiles of this turn name units of this turn.
            unsafe { self.launch(&merge, [turn.tiles.len(), shape.kv_heads], &args) }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(spans: &[(usize, usize)], window: Option<u32>, units_at_once: usize) -> Cut {
        let table: Vec<u32> = (0..1000).collect();
        let mut cut = Cut { units_at_once, ..Cut::default() };
        let mut first_row = 0;
        for &(first_position, rows) in spans {
            cut.add(&AttentionSpan { first_row, rows, first_position, block_table: &table }, (window, 4, 16))
                .unwrap();
            first_row += rows;
        }
        cut.end_turn();
        cut
    }

    #[test]
    fn every_tile_has_the_partitions_that_its_pairs_see() {
        let cut = cut(&[(1000, 1), (510, 9)], None, 100);
        let tiles: Vec<(u32, u32, u32, u32)> =
            cut.tiles.iter().map(|tile| (tile.first_pair, tile.pairs, tile.first_unit, tile.units)).collect();
        assert_eq!(tiles, [(0, 4, 0, 2), (0, 16, 2, 2), (16, 16, 4, 2), (32, 4, 6, 2)]);
        assert_eq!(cut.turns, [Turn { tiles: 0..4, units: 0..8 }]);
        assert_eq!(cut.units[..4], [0, 0, 0, 1]);
        assert_eq!(cut.block_tables.len(), 63 + 33);
    }

    #[test]
    fn a_window_leaves_partitions_out_and_many_units_take_turns() {
        let windowed = cut(&[(1500, 1)], Some(400), 100);
        assert_eq!(windowed.units, [0, 2]);
        let turns = cut(&[(1500, 1), (1500, 1), (1500, 1)], None, 7);
        assert_eq!(turns.turns, [Turn { tiles: 0..2, units: 0..6 }, Turn { tiles: 2..3, units: 6..9 }]);
        assert_eq!(turns.tiles[2].first_unit, 0);
    }
}
