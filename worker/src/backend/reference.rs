//! The oracle: every operation in the plainest arithmetic there is, on weights dequantized to f32 and sums in f64.
//!
//! Tests compare the other backends with it, and `logits --device reference` shows what a model says without
//! quantized activations or a half-precision cache. It is single-threaded and slow on purpose.

use super::{
    Accumulate, AttentionStep, BLOCK_TOKENS, Backend, BackendError, CacheShape, KvStep, Product, Rope,
    RopePairing,
};
use crate::batch::{Batch, KvSlot};
use crate::model::weights::Tensor;
use kernels::KernelError;

/// Computes on the calling thread; holds nothing from one operation to the next.
#[derive(Debug, Default)]
pub struct ReferenceBackend;

/// A dequantized matrix `[rows, cols]`.
pub struct ReferenceMatrix {
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

/// f32 `[rows, width]`.
pub struct ReferenceRows {
    values: Vec<f32>,
    width: usize,
}

impl ReferenceRows {
    fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    fn resize(&mut self, rows: usize) {
        self.values.resize(rows * self.width, 0.0);
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..(row + 1) * self.width]
    }
}

/// Keys and values as f32 `[layers, slots, kv_heads·head_dim]`.
pub struct ReferenceCache {
    shape: CacheShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl ReferenceCache {
    fn entry(&self, layer: usize, slot: KvSlot) -> std::ops::Range<usize> {
        let width = self.shape.kv_heads * self.shape.head_dim;
        let slots = self.shape.blocks * BLOCK_TOKENS as usize;
        let index = slot.block as usize * BLOCK_TOKENS as usize + slot.offset as usize;
        let start = (layer * slots + index) * width;
        start..start + width
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn rms_norm_row(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let mean_square = dot(x, x) / x.len() as f64;
    let scale = 1.0 / (mean_square + f64::from(eps)).sqrt();
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
        *out = (f64::from(*x) * scale * f64::from(*gain)) as f32;
    }
}

/// Rotates one head's first `2·inv_freq.len()` elements by the angles of `position`.
fn rotate(head: &mut [f32], rope: &Rope, position: u32) {
    let pairs = rope.inv_freq.len();
    for (pair, inv_freq) in rope.inv_freq.iter().enumerate() {
        let (sin, cos) = (f64::from(position) * f64::from(*inv_freq)).sin_cos();
        let (first, second) = match rope.pairing {
            RopePairing::Adjacent => (2 * pair, 2 * pair + 1),
            RopePairing::Halves => (pair, pair + pairs),
        };
        let (a, b) = (f64::from(head[first]), f64::from(head[second]));
        head[first] = (a * cos - b * sin) as f32;
        head[second] = (a * sin + b * cos) as f32;
    }
}

impl Backend for ReferenceBackend {
    type Matrix = ReferenceMatrix;
    type Vector = Vec<f32>;
    type Embedding = ReferenceMatrix;
    type Rows = ReferenceRows;
    type Cache = ReferenceCache;

    fn load_matrix(&self, tensor: &Tensor) -> Result<ReferenceMatrix, BackendError> {
        Ok(ReferenceMatrix { values: tensor.to_f32()?, rows: tensor.rows(), cols: tensor.cols() })
    }

    fn load_vector(&self, tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
        tensor.to_f32()
    }

    fn load_embedding(&self, tensor: &Tensor) -> Result<ReferenceMatrix, BackendError> {
        self.load_matrix(tensor)
    }

    fn matrix_bytes(&self, matrix: &ReferenceMatrix) -> usize {
        size_of_val(matrix.values.as_slice())
    }

    fn rows(&self, width: usize) -> Result<ReferenceRows, BackendError> {
        Ok(ReferenceRows { values: Vec::new(), width })
    }

    fn allocate_cache(&self, shape: CacheShape) -> Result<ReferenceCache, BackendError> {
        let elements = shape.layers * shape.blocks * BLOCK_TOKENS as usize * shape.kv_heads * shape.head_dim;
        Ok(ReferenceCache { shape, keys: vec![0.0; elements], values: vec![0.0; elements] })
    }

    fn copy_block(&self, cache: &mut ReferenceCache, from: u32, to: u32) -> Result<(), BackendError> {
        for layer in 0..cache.shape.layers {
            for offset in 0..BLOCK_TOKENS {
                let source = cache.entry(layer, KvSlot { block: from, offset });
                let target = cache.entry(layer, KvSlot { block: to, offset }).start;
                cache.keys.copy_within(source.clone(), target);
                cache.values.copy_within(source, target);
            }
        }
        Ok(())
    }

    fn begin_step(&mut self, _batch: &Batch, _rope: &Rope) -> Result<(), BackendError> {
        Ok(())
    }

    fn embed(
        &self,
        table: &ReferenceMatrix,
        batch: &Batch,
        out: &mut ReferenceRows,
    ) -> Result<(), BackendError> {
        out.resize(batch.tokens.len());
        for (row, token) in batch.tokens.iter().enumerate() {
            let token = *token as usize;
            if token >= table.rows {
                let source = KernelError::OutOfRange { what: "token", value: token, limit: table.rows };
                return Err(BackendError::Kernel { operation: "embed", source });
            }
            out.row_mut(row).copy_from_slice(&table.values[token * table.cols..(token + 1) * table.cols]);
        }
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &ReferenceRows,
        gain: &Vec<f32>,
        eps: f32,
        out: &mut ReferenceRows,
    ) -> Result<(), BackendError> {
        out.resize(x.rows());
        for row in 0..x.rows() {
            rms_norm_row(x.row(row), gain, eps, out.row_mut(row));
        }
        Ok(())
    }

    fn head_norm(&self, x: &mut ReferenceRows, gain: &Vec<f32>, eps: f32) -> Result<(), BackendError> {
        let mut normed = vec![0.0; gain.len()];
        for head in x.values.chunks_exact_mut(gain.len()) {
            rms_norm_row(head, gain, eps, &mut normed);
            head.copy_from_slice(&normed);
        }
        Ok(())
    }

    fn matmul(&self, x: &mut ReferenceRows, products: &mut [Product<'_, Self>]) -> Result<(), BackendError> {
        for product in products {
            product.out.resize(x.rows());
            for row in 0..x.rows() {
                let outputs = product.out.row_mut(row);
                for (index, (out, weights)) in outputs
                    .iter_mut()
                    .zip(product.weight.values.chunks_exact(product.weight.cols))
                    .enumerate()
                {
                    let bias = product.bias.map_or(0.0, |bias| f64::from(bias[index]));
                    let sum = dot(x.row(row), weights) + bias;
                    *out = match product.accumulate {
                        Accumulate::Set => sum as f32,
                        Accumulate::Add => (f64::from(*out) + sum) as f32,
                    };
                }
            }
        }
        Ok(())
    }

    fn rope_and_store_kv(
        &self,
        step: KvStep<'_, Self>,
        cache: &mut ReferenceCache,
    ) -> Result<(), BackendError> {
        let KvStep { layer, batch, attention, rope, q, k, v } = step;
        for (row, (position, slot)) in batch.positions.iter().zip(&batch.slots).enumerate() {
            for heads in [q.row_mut(row), k.row_mut(row)] {
                for head in heads.chunks_exact_mut(attention.head_dim) {
                    rotate(head, rope, *position);
                }
            }
            let entry = cache.entry(layer, *slot);
            cache.keys[entry.clone()].copy_from_slice(k.row(row));
            cache.values[entry].copy_from_slice(v.row(row));
        }
        Ok(())
    }

    fn paged_attention(
        &self,
        step: AttentionStep<'_, Self>,
        cache: &ReferenceCache,
        out: &mut ReferenceRows,
    ) -> Result<(), BackendError> {
        let AttentionStep { layer, batch, attention, q } = step;
        out.resize(q.rows());
        let group = attention.heads / attention.kv_heads;
        for span in &batch.spans {
            let blocks = &batch.block_tables[span.blocks.clone()];
            let entry = |position: u32| {
                let block = blocks[(position / BLOCK_TOKENS) as usize];
                cache.entry(layer, KvSlot { block, offset: position % BLOCK_TOKENS }).start
            };
            for (row, last) in span.rows.clone().zip(span.first_position..) {
                for head in 0..attention.heads {
                    let offset = head / group * attention.head_dim;
                    let dims = head * attention.head_dim..(head + 1) * attention.head_dim;
                    let query = &q.row(row)[dims.clone()];
                    let scores: Vec<f64> = (0..=last)
                        .map(|position| {
                            let start = entry(position) + offset;
                            dot(query, &cache.keys[start..start + attention.head_dim])
                                * f64::from(attention.scale)
                        })
                        .collect();
                    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let mut sums = vec![0.0f64; attention.head_dim];
                    for (position, weight) in (0..=last).zip(&weights) {
                        let start = entry(position) + offset;
                        let value = &cache.values[start..start + attention.head_dim];
                        for (sum, value) in sums.iter_mut().zip(value) {
                            *sum += weight * f64::from(*value);
                        }
                    }
                    for (out, sum) in out.row_mut(row)[dims].iter_mut().zip(sums) {
                        *out = (sum / total) as f32;
                    }
                }
            }
        }
        Ok(())
    }

    fn gated_activation(
        &self,
        gate: &ReferenceRows,
        up: &ReferenceRows,
        out: &mut ReferenceRows,
    ) -> Result<(), BackendError> {
        out.resize(gate.rows());
        for ((out, gate), up) in out.values.iter_mut().zip(&gate.values).zip(&up.values) {
            let gate = f64::from(*gate);
            *out = (gate / (1.0 + (-gate).exp()) * f64::from(*up)) as f32;
        }
        Ok(())
    }

    fn gather(&self, x: &ReferenceRows, rows: &[usize], out: &mut ReferenceRows) -> Result<(), BackendError> {
        out.resize(rows.len());
        for (index, row) in rows.iter().enumerate() {
            out.row_mut(index).copy_from_slice(x.row(*row));
        }
        Ok(())
    }

    fn read<'a>(&self, x: &'a ReferenceRows) -> Result<&'a [f32], BackendError> {
        Ok(&x.values)
    }
}
