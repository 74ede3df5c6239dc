//! Causal attention of query rows over the blocks of their sequences.
//!
//! Called by the worker once a layer with all rows of a batch, decoding and prefilling alike. The result of a row
//! depends on its query and the keys and values of the positions it sees, and on nothing else: positions are cut
//! into partitions of [`PARTITION`] at fixed places; inside a partition scores, maximum, exponentials, sum and
//! weighted values are taken in position order; partitions are merged one after another in position order. Which
//! rows share a pass over the keys, and which thread runs a partition, changes no bit. `partition` does this for
//! keys and values stored as floats, `quantized` for those of a q8_0 cache.
//! It neither rotates nor stores keys: `rope_in_place` and `store_kv` came before.

mod partition;
mod quantized;

use super::kv_cache::{BLOCK_TOKENS, KvCache, KvElement, LayerTiles, QuantizedTiles, Tiles};
use super::shape::{expect_below, expect_len, rows_of};
use super::{Cpu, DisjointMut};
use crate::KernelError;
use partition::{Merge, Partition, Record, View, Work};
use quantized::QuantizedPartition;

/// Positions that share one maximum. Large enough that merging costs nothing, small enough that one long
/// sequence feeds every thread.
const PARTITION: usize = 512;
/// Query vectors sharing a pass over keys and values: their scores (64 KiB) stay in the second-level cache.
const PAIRS_PER_TILE: usize = 32;
/// Below this many tasks for each thread the partitions of a task run in parallel too.
const TASKS_PER_THREAD: usize = 4;

/// Rows of one sequence in the batch.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSpan<'a> {
    /// Its first row in the batch.
    pub first_row: usize,
    /// How many rows.
    pub rows: usize,
    /// Position of the first row in its sequence; row i stands at `first_position` + i.
    pub first_position: usize,
    /// The blocks holding positions 0..16, 16..32, … up to the last row's.
    pub block_table: &'a [u32],
}

/// What a row may see and how scores are shaped.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams {
    /// Query heads, a multiple of the cache's key/value heads.
    pub heads: usize,
    /// Factor of q·k, usually 1 / √head_dim.
    pub scale: f32,
    /// See only the last so many positions, the own one included (at least one).
    pub window: Option<u32>,
    /// Replace a score s by c · tanh(s / c).
    pub softcap: Option<f32>,
}

/// The queries of a batch.
#[derive(Debug, Clone, Copy)]
pub struct AttentionBatch<'a> {
    /// Rotated queries [rows, heads · head_dim], f32, row-major.
    pub q: &'a [f32],
    /// Which rows belong to which sequence, in ascending order of rows, none twice.
    pub spans: &'a [AttentionSpan<'a>],
    /// Common to all rows.
    pub params: AttentionParams,
}

/// Attends with each row of each span to positions `0..=` its own (or the last `window` of these) in `layer`.
///
/// Shape: `out` as `batch.q`; rows in no span are left alone. Errors: [`KernelError`] where lengths do not fit,
/// heads are no multiple of the key/value heads, spans overlap, or a block table is short or names a block
/// outside the cache.
/// Source: Vaswani et al. 2017; paging after Kwon et al. 2023, partitions after Dao et al. 2023 (split-KV).
pub fn paged_attention(
    cpu: &Cpu,
    kv: &KvCache,
    layer: usize,
    batch: &AttentionBatch<'_>,
    out: &mut [f32],
) -> Result<(), KernelError> {
    check(kv, layer, batch)?;
    expect_len("attention output", out.len(), batch.q.len())?;
    match kv.layer(layer) {
        LayerTiles::F32(tiles) => Call::new(kv, batch, tiles).run(cpu, out),
        LayerTiles::F16(tiles) => Call::new(kv, batch, tiles).run(cpu, out),
        LayerTiles::Q8(tiles) => Call::new(kv, batch, tiles).run(cpu, out),
    }
    Ok(())
}

fn check(kv: &KvCache, layer: usize, batch: &AttentionBatch<'_>) -> Result<(), KernelError> {
    let (layout, heads) = (kv.layout(), batch.params.heads);
    expect_below("kv layer", layer, layout.layers)?;
    if heads == 0 {
        return Err(KernelError::Empty { what: "query heads" });
    }
    if !heads.is_multiple_of(layout.kv_heads) {
        return Err(KernelError::Multiple { what: "query heads", value: heads, multiple: layout.kv_heads });
    }
    let rows = rows_of("attention queries", batch.q.len(), heads.saturating_mul(layout.head_dim))?;
    let mut next = 0;
    for span in batch.spans {
        if span.first_row < next {
            let (actual, expected) = (span.first_row, next);
            return Err(KernelError::Length { what: "first row of a span", expected, actual });
        }
        next = span.first_row.saturating_add(span.rows);
        expect_below("end of a span", next, rows + 1)?;
        let blocks = span.first_position.saturating_add(span.rows).div_ceil(BLOCK_TOKENS);
        expect_below("blocks of a span", blocks, span.block_table.len() + 1)?;
        for &block in &span.block_table[..blocks] {
            expect_below("block of a span", block as usize, layout.blocks)?;
        }
    }
    Ok(())
}

/// Rows of one span that share a pass over keys and values.
#[derive(Clone, Copy)]
struct RowTile<'a> {
    first_row: usize,
    rows: usize,
    first_position: usize,
    block_table: &'a [u32],
}

/// Tiles of one layer that attention can walk.
trait Attended: Copy + Sync {
    /// Computes the records of one partition.
    fn compute(self, cpu: &Cpu, work: Work<'_>);
}

impl<T: KvElement> Attended for Tiles<'_, T> {
    fn compute(self, cpu: &Cpu, work: Work<'_>) {
        cpu.launch(Partition { tiles: self, work });
    }
}

impl Attended for QuantizedTiles<'_> {
    fn compute(self, cpu: &Cpu, work: Work<'_>) {
        cpu.launch(QuantizedPartition { tiles: self, work });
    }
}

/// One call of [`paged_attention`], checked.
struct Call<'a, T> {
    batch: &'a AttentionBatch<'a>,
    tiles: T,
    kv_heads: usize,
    head_dim: usize,
    record: Record,
    row_tiles: Vec<RowTile<'a>>,
}

impl<'a, T: Attended> Call<'a, T> {
    fn new(kv: &KvCache, batch: &'a AttentionBatch<'a>, tiles: T) -> Self {
        let layout = kv.layout();
        let step = (PAIRS_PER_TILE * layout.kv_heads / batch.params.heads).max(1);
        let mut row_tiles = Vec::new();
        for span in batch.spans {
            // Later rows see more, and long tasks should start first.
            for start in (0..span.rows).step_by(step).rev() {
                row_tiles.push(RowTile {
                    first_row: span.first_row + start,
                    rows: step.min(span.rows - start),
                    first_position: span.first_position + start,
                    block_table: span.block_table,
                });
            }
        }
        let record = Record { value_dim: layout.value_dim() };
        Call { batch, tiles, kv_heads: layout.kv_heads, head_dim: layout.head_dim, record, row_tiles }
    }

    fn group(&self) -> usize {
        self.batch.params.heads / self.kv_heads
    }

    /// The partitions that some row of the tile sees.
    fn partitions(&self, tile: &RowTile<'_>) -> std::ops::Range<usize> {
        let seen = self.batch.params.seen_from(tile.first_position);
        seen.start / PARTITION..(tile.first_position + tile.rows).div_ceil(PARTITION)
    }

    fn run(&self, cpu: &Cpu, out: &mut [f32]) {
        let out = DisjointMut::new(out);
        let tasks = self.row_tiles.len() * self.kv_heads;
        let longest = self.row_tiles.iter().map(|tile| self.partitions(tile).len()).max().unwrap_or(0);
        if tasks >= TASKS_PER_THREAD * cpu.threads() || cpu.threads() == 1 || longest < 2 {
            cpu.for_each_chunk(tasks, 1, &|tasks| {
                for task in tasks {
                    self.attend(cpu, task, &out);
                }
            });
        } else {
            self.attend_by_partition(cpu, &out);
        }
    }

    fn task(&self, task: usize) -> (&RowTile<'a>, usize) {
        (&self.row_tiles[task / self.kv_heads], task % self.kv_heads)
    }

    /// One row tile and head, all its partitions in turn.
    fn attend(&self, cpu: &Cpu, task: usize, out: &DisjointMut<'_, f32>) {
        let (tile, kv_head) = self.task(task);
        let len = self.record.len() * tile.rows * self.group();
        let (mut part, mut total) = (vec![0.0; len], vec![0.0; len]);
        self.record.clear(&mut total);
        for partition in self.partitions(tile) {
            self.compute(cpu, tile, kv_head, partition, &mut part);
            cpu.launch(Merge { record: self.record, part: &part, total: &mut total });
        }
        self.finish(tile, kv_head, &total, out);
    }

    /// Few tasks: every partition of every task runs on its own, then each task merges its own, in order.
    fn attend_by_partition(&self, cpu: &Cpu, out: &DisjointMut<'_, f32>) {
        let tasks = self.row_tiles.len() * self.kv_heads;
        let mut units = Vec::new();
        let mut first_units = vec![0];
        let mut len = 0;
        for task in 0..tasks {
            let (tile, _) = self.task(task);
            for partition in self.partitions(tile) {
                units.push((task, partition, len));
                len += self.record.len() * tile.rows * self.group();
            }
            first_units.push(units.len());
        }
        let mut parts = vec![0.0; len];
        let part_len = |task: usize| self.record.len() * self.task(task).0.rows * self.group();
        let shared = DisjointMut::new(&mut parts);
        cpu.for_each_chunk(units.len(), 1, &|chunk| {
            for &(task, partition, start) in &units[chunk] {
                let (tile, kv_head) = self.task(task);
                // SAFETY: each unit owns the records from its start to the next unit's, and runs once.
                let part = unsafe { shared.slice(start..start + part_len(task)) };
                self.compute(cpu, tile, kv_head, partition, part);
            }
        });
        let parts = &parts;
        cpu.for_each_chunk(tasks, 1, &|chunk| {
            for task in chunk {
                let mut total = vec![0.0; part_len(task)];
                self.record.clear(&mut total);
                for &(_, _, start) in &units[first_units[task]..first_units[task + 1]] {
                    let part = &parts[start..start + part_len(task)];
                    cpu.launch(Merge { record: self.record, part, total: &mut total });
                }
                let (tile, kv_head) = self.task(task);
                self.finish(tile, kv_head, &total, out);
            }
        });
    }

    fn compute(&self, cpu: &Cpu, tile: &RowTile<'_>, kv_head: usize, partition: usize, part: &mut [f32]) {
        let (group, dim) = (self.group(), self.head_dim);
        let mut q = Vec::with_capacity(tile.rows * group * dim);
        for row in tile.first_row..tile.first_row + tile.rows {
            let start = (row * self.kv_heads + kv_head) * group * dim;
            q.extend_from_slice(&self.batch.q[start..start + group * dim]);
        }
        let first_block = partition * (PARTITION / BLOCK_TOKENS);
        let view = View {
            params: self.batch.params,
            first_position: tile.first_position,
            start: partition * PARTITION,
            group,
        };
        let blocks = &tile.block_table[first_block..];
        let record = self.record;
        self.tiles.compute(cpu, Work { kv_head, blocks, view, q: &q, head_dim: dim, record, part });
    }

    /// Divides the weighted values by the sums of weights and writes them out.
    fn finish(&self, tile: &RowTile<'_>, kv_head: usize, total: &[f32], out: &DisjointMut<'_, f32>) {
        let (group, dim) = (self.group(), self.head_dim);
        for (pair, record) in total.chunks_exact(self.record.len()).enumerate() {
            let head = kv_head * group + pair % group;
            let start = ((tile.first_row + pair / group) * self.batch.params.heads + head) * dim;
            // SAFETY: rows of spans are disjoint (checked), and a row tile and head belong to one task.
            let out = unsafe { out.slice(start..start + dim) };
            let sum = self.record.sum(record);
            for (out, value) in out.iter_mut().zip(record) {
                *out = value / sum;
            }
        }
    }
}

impl AttentionParams {
    /// The positions that a row at `position` sees.
    #[inline(always)]
    fn seen_from(&self, position: usize) -> std::ops::Range<usize> {
        let end = position + 1;
        let start = self.window.map_or(0, |window| end.saturating_sub(window.max(1) as usize));
        start..end
    }
}
