//! The CPU backend: each operation hands its slices to the kernel of the same name.
//!
//! Holds the thread pool and, for the current step, what all layers share. Quantized copies of activations are
//! made when a matrix first needs them and cached in the rows until these are written again, so that q, k and v
//! quantize their common input once.

use super::{
    Accumulate, AttentionStep, Backend, BackendError, CacheShape, KvStep, Product, Rope, RopePairing,
    attention_spans,
};
use crate::batch::Batch;
use crate::model::weights::Tensor;
use kernels::KernelError;
use kernels::blocks::dequantize;
use kernels::cpu::{
    self, ActivationFormat, Activations, AlignedBuffer, AttentionBatch, AttentionParams, Cpu, KvCache,
    KvLayout, KvRows, KvSlot, Matrix, QuantizedRows, RopeShape, RopeTable,
};

/// Computes on the threads of one [`Cpu`].
pub struct CpuBackend {
    cpu: Cpu,
    angles: RopeTable,
}

/// f32 `[rows, width]` with the quantized copies made so far.
pub struct CpuRows {
    width: usize,
    rows: usize,
    values: AlignedBuffer<f32>,
    per32: Cached,
    per256: Cached,
}

/// A quantized copy and whether it is of the present values.
struct Cached {
    rows: QuantizedRows,
    current: bool,
}

impl Cached {
    fn empty() -> Result<Self, BackendError> {
        Ok(Self { rows: QuantizedRows::new().map_err(failed("activations"))?, current: false })
    }
}

impl CpuRows {
    /// Makes room for `rows` rows and forgets what was there.
    fn prepare(&mut self, rows: usize) -> Result<&mut [f32], BackendError> {
        let len = rows * self.width;
        if self.values.len() < len {
            // Doubling keeps the number of allocations logarithmic while batches grow.
            let capacity = len.max(2 * self.values.len());
            self.values = AlignedBuffer::zeroed(capacity, "activations").map_err(failed("activations"))?;
        }
        self.rows = rows;
        Ok(self.values_mut())
    }

    fn values(&self) -> &[f32] {
        &self.values[..self.rows * self.width]
    }

    /// The values for writing; cached copies are void afterwards.
    fn values_mut(&mut self) -> &mut [f32] {
        self.per32.current = false;
        self.per256.current = false;
        &mut self.values[..self.rows * self.width]
    }

    fn quantize(&mut self, cpu: &Cpu, format: ActivationFormat) -> Result<(), KernelError> {
        let cached = match format {
            ActivationFormat::F32 => return Ok(()),
            ActivationFormat::Int8Per32 => &mut self.per32,
            ActivationFormat::Int8Per256 => &mut self.per256,
        };
        if !cached.current {
            let values = &self.values[..self.rows * self.width];
            cpu::quantize_rows(cpu, values, (self.rows, self.width), format, &mut cached.rows)?;
            cached.current = true;
        }
        Ok(())
    }

    fn activations(&self) -> Activations<'_> {
        Activations {
            rows: self.rows,
            cols: self.width,
            f32: self.values(),
            per32: self.per32.current.then_some(&self.per32.rows),
            per256: self.per256.current.then_some(&self.per256.rows),
        }
    }
}

fn failed(operation: &'static str) -> impl Fn(KernelError) -> BackendError {
    move |source| BackendError::Kernel { operation, source }
}

impl CpuBackend {
    /// A backend on `cpu`'s threads and instruction set.
    pub fn new(cpu: Cpu) -> Self {
        Self { cpu, angles: RopeTable::compute(&[], &[], 1.0) }
    }

    fn rotate(
        &self,
        x: &mut CpuRows,
        heads: usize,
        step: (&super::Attention, &Rope),
    ) -> Result<(), BackendError> {
        let (attention, rope) = step;
        let pairing = match rope.pairing {
            RopePairing::Adjacent => cpu::RopePairing::Adjacent,
            RopePairing::Halves => cpu::RopePairing::Halves,
        };
        let rope_dims = 2 * rope.inv_freq.len();
        let shape = RopeShape { heads, head_dim: attention.head_dim, rope_dims, pairing };
        cpu::rope_in_place(&self.cpu, x.values_mut(), shape, &self.angles).map_err(failed("rope"))
    }
}

impl Backend for CpuBackend {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Embedding = Tensor;
    type Rows = CpuRows;
    type Cache = KvCache;

    fn load_matrix(&self, tensor: &Tensor) -> Result<Matrix, BackendError> {
        Matrix::pack(&self.cpu, tensor.block_type(), tensor.rows(), tensor.cols(), tensor.bytes())
            .map_err(failed("pack"))
    }

    fn load_vector(&self, tensor: &Tensor) -> Result<Vec<f32>, BackendError> {
        tensor.to_f32()
    }

    fn load_embedding(&self, tensor: &Tensor) -> Result<Tensor, BackendError> {
        // Rows are read from the memory map: a step touches few of them.
        Ok(tensor.clone())
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.bytes()
    }

    fn rows(&self, width: usize) -> Result<CpuRows, BackendError> {
        let values = AlignedBuffer::zeroed(0, "activations").map_err(failed("activations"))?;
        Ok(CpuRows { width, rows: 0, values, per32: Cached::empty()?, per256: Cached::empty()? })
    }

    fn allocate_cache(&self, shape: CacheShape) -> Result<KvCache, BackendError> {
        KvCache::new(KvLayout::from(shape)).map_err(failed("allocate_cache"))
    }

    fn copy_block(&self, cache: &mut KvCache, from: u32, to: u32) -> Result<(), BackendError> {
        cache.copy_block(from, to).map_err(failed("copy_block"))
    }

    fn begin_step(&mut self, batch: &Batch, rope: &Rope) -> Result<(), BackendError> {
        self.angles = RopeTable::compute(&batch.positions, &rope.inv_freq, 1.0);
        Ok(())
    }

    fn embed(&self, table: &Tensor, batch: &Batch, out: &mut CpuRows) -> Result<(), BackendError> {
        let width = out.width;
        let values = out.prepare(batch.tokens.len())?;
        for (token, row) in batch.tokens.iter().zip(values.chunks_exact_mut(width)) {
            let (value, limit) = (*token as usize, table.rows());
            if value >= limit {
                return Err(failed("embed")(KernelError::OutOfRange { what: "token", value, limit }));
            }
            dequantize(table.block_type(), table.row_bytes(value), row).map_err(failed("embed"))?;
        }
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &CpuRows,
        gain: &Vec<f32>,
        eps: f32,
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        let values = out.prepare(x.rows)?;
        cpu::rms_norm(&self.cpu, x.values(), gain, eps, values).map_err(failed("rms_norm"))
    }

    fn head_norm(&self, x: &mut CpuRows, gain: &Vec<f32>, eps: f32) -> Result<(), BackendError> {
        cpu::rms_norm_in_place(&self.cpu, x.values_mut(), gain, eps).map_err(failed("head_norm"))
    }

    fn matmul(&self, x: &mut CpuRows, products: &mut [Product<'_, Self>]) -> Result<(), BackendError> {
        for product in &mut *products {
            x.quantize(&self.cpu, product.weight.activation_format()).map_err(failed("quantize_rows"))?;
            match product.accumulate {
                Accumulate::Set => product.out.prepare(x.rows)?,
                Accumulate::Add => product.out.values_mut(),
            };
        }
        let mut jobs: Vec<cpu::Product<'_>> = products
            .iter_mut()
            .map(|product| cpu::Product {
                weight: product.weight,
                bias: product.bias.map(Vec::as_slice),
                accumulate: match product.accumulate {
                    Accumulate::Set => cpu::Accumulate::Set,
                    Accumulate::Add => cpu::Accumulate::Add,
                },
                out: product.out.values_mut(),
            })
            .collect();
        cpu::matmul(&self.cpu, &x.activations(), &mut jobs).map_err(failed("matmul"))
    }

    fn rope_and_store_kv(&self, step: KvStep<'_, Self>, cache: &mut KvCache) -> Result<(), BackendError> {
        let KvStep { layer, batch, attention, rope, q, k, v } = step;
        self.rotate(q, attention.heads, (attention, rope))?;
        self.rotate(k, attention.kv_heads, (attention, rope))?;
        let slots: Vec<KvSlot> =
            batch.slots.iter().map(|slot| KvSlot { block: slot.block, offset: slot.offset }).collect();
        let rows = KvRows { k: k.values(), v: v.values(), slots: &slots };
        cpu::store_kv(&self.cpu, cache, layer, &rows).map_err(failed("store_kv"))
    }

    fn paged_attention(
        &self,
        step: AttentionStep<'_, Self>,
        cache: &KvCache,
        out: &mut CpuRows,
    ) -> Result<(), BackendError> {
        let AttentionStep { layer, batch, attention, q } = step;
        let spans = attention_spans(batch);
        let params =
            AttentionParams { heads: attention.heads, scale: attention.scale, window: None, softcap: None };
        let batch = AttentionBatch { q: q.values(), spans: &spans, params };
        cpu::paged_attention(&self.cpu, cache, layer, &batch, out.prepare(q.rows)?)
            .map_err(failed("paged_attention"))
    }

    fn gated_activation(&self, gate: &CpuRows, up: &CpuRows, out: &mut CpuRows) -> Result<(), BackendError> {
        let values = out.prepare(gate.rows)?;
        cpu::gated_silu(&self.cpu, gate.values(), up.values(), values).map_err(failed("gated_activation"))
    }

    fn gather(&self, x: &CpuRows, rows: &[usize], out: &mut CpuRows) -> Result<(), BackendError> {
        let width = x.width;
        let values = out.prepare(rows.len())?;
        for (row, out) in rows.iter().zip(values.chunks_exact_mut(width)) {
            out.copy_from_slice(&x.values()[row * width..(row + 1) * width]);
        }
        Ok(())
    }

    fn read<'a>(&self, x: &'a CpuRows) -> Result<&'a [f32], BackendError> {
        Ok(x.values())
    }
}
