//! What a device must be able to do: a couple of dozen fused operations over device-resident data.
//!
//! The model's forward pass is written once over [`Backend`]; `cpu` serves, `reference` is the plain-arithmetic
//! oracle that tests (and `--device reference`) compare with, `hip` (with the cargo feature) is an AMD GPU. An
//! operation and its kernel carry the same name. What holds always (promise P3): every output row depends on its own
//! input row, its own sequence's cache and the weights alone, bit for bit, whatever else is in the batch.
//!
//! Shapes: `Rows` is f32 `[rows, width]`, row-major, where `rows` is what the producing operation was given.

mod cpu;
#[cfg(feature = "hip")]
mod hip;
mod reference;

pub use cpu::CpuBackend;
#[cfg(feature = "hip")]
pub use hip::HipBackend;
pub use reference::ReferenceBackend;

use crate::batch::{Batch, Span};
use crate::model::weights::Tensor;
use kernels::KernelError;
use kernels::cpu::{AttentionSpan, KvLayout};

/// What can go wrong on a device.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// A kernel refused its arguments or ran out of memory.
    #[error("{operation}: {source}")]
    Kernel {
        /// The operation of [`Backend`].
        operation: &'static str,
        /// The kernel's words.
        source: KernelError,
    },
    /// The GPU or its runtime.
    #[cfg(feature = "hip")]
    #[error("{operation}: {source}")]
    Hip {
        /// The operation of [`Backend`].
        operation: &'static str,
        /// What failed, by the name of the call.
        source: Box<kernels::hip::HipError>,
    },
    /// A tensor's type has no kernel here.
    #[error("tensor {tensor} has type {kind}, which the {backend} backend cannot compute with")]
    TensorType {
        /// The tensor's name.
        tensor: String,
        /// Its type as ggml names it.
        kind: String,
        /// The backend's name.
        backend: &'static str,
    },
}

/// Type of keys and values in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// 4 bytes, for comparisons.
    F32,
    /// 2 bytes, the default.
    F16,
    /// 1 byte and a share of a scale: half the memory, a rounding error of up to 1/254 of a group's largest number.
    Q8_0,
}

/// Tokens in a KV block: one vector of sixteen positions.
pub const BLOCK_TOKENS: u32 = 16;

/// Size of a paged cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers with attention.
    pub layers: usize,
    /// Blocks of [`BLOCK_TOKENS`] tokens.
    pub blocks: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Element type.
    pub kv_type: KvType,
}

impl CacheShape {
    /// Bytes of one block over all layers, keys and values, as the kernels lay them out.
    pub fn block_bytes(&self) -> usize {
        KvLayout::from(*self).block_bytes()
    }
}

impl From<CacheShape> for KvLayout {
    fn from(shape: CacheShape) -> Self {
        let CacheShape { layers, blocks, kv_heads, head_dim, kv_type } = shape;
        let kv_type = match kv_type {
            KvType::F32 => kernels::cpu::KvType::F32,
            KvType::F16 => kernels::cpu::KvType::F16,
            KvType::Q8_0 => kernels::cpu::KvType::Q8_0,
        };
        Self { layers, blocks, kv_heads, head_dim, kv_type }
    }
}

/// Which elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// Elements 2i and 2i+1 (GGUF's llama convention).
    Adjacent,
    /// Elements i and i + dims/2 (GPT-NeoX convention).
    Halves,
}

/// Rotary position embedding (Su et al. 2021) of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Angle per position of each rotating pair, `[dims / 2]`.
    pub inv_freq: Vec<f32>,
    /// Which elements form a pair.
    pub pairing: RopePairing,
}

/// Attention of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
}

/// Whether a product replaces its output or adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// `out = x·wᵀ + bias`
    Set,
    /// `out += x·wᵀ + bias`
    Add,
}

/// One matrix that multiplies the common input of a [`Backend::matmul`].
pub struct Product<'a, B: Backend + ?Sized> {
    /// Weights `[outputs, inputs]`.
    pub weight: &'a B::Matrix,
    /// `[outputs]`
    pub bias: Option<&'a B::Vector>,
    /// Set or add.
    pub accumulate: Accumulate,
    /// `[rows, outputs]`
    pub out: &'a mut B::Rows,
}

/// A device. Weights and activations live there; the caller holds handles.
pub trait Backend {
    /// A weight matrix in the device's own layout.
    type Matrix;
    /// A vector of f32.
    type Vector;
    /// The embedding table, rows gathered by token.
    type Embedding;
    /// Activations f32 `[rows, width]`.
    type Rows;
    /// Keys and values of all layers, in blocks.
    type Cache;

    /// Puts a matrix on the device.
    fn load_matrix(&self, tensor: &Tensor) -> Result<Self::Matrix, BackendError>;
    /// Puts a vector on the device, converted to f32.
    fn load_vector(&self, tensor: &Tensor) -> Result<Self::Vector, BackendError>;
    /// Makes the embedding table available for [`Self::embed`].
    fn load_embedding(&self, tensor: &Tensor) -> Result<Self::Embedding, BackendError>;
    /// Bytes a matrix takes on the device.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// An empty activation buffer of `width` columns; it grows to the rows it is given.
    fn rows(&self, width: usize) -> Result<Self::Rows, BackendError>;
    /// A zeroed cache.
    fn allocate_cache(&self, shape: CacheShape) -> Result<Self::Cache, BackendError>;
    /// Copies block `from` onto block `to` in every layer.
    fn copy_block(&self, cache: &mut Self::Cache, from: u32, to: u32) -> Result<(), BackendError>;

    /// Announces a step: uploads its arrays and computes what all layers share (rotation angles).
    fn begin_step(&mut self, batch: &Batch, rope: &Rope) -> Result<(), BackendError>;
    /// `out[r] = table[tokens[r]]`, `out` of the batch's rows.
    fn embed(&self, table: &Self::Embedding, batch: &Batch, out: &mut Self::Rows)
    -> Result<(), BackendError>;
    /// Scales each row of `x` to unit root mean square, then multiplies by `gain` (Zhang & Sennrich 2019).
    fn rms_norm(
        &self,
        x: &Self::Rows,
        gain: &Self::Vector,
        eps: f32,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;
    /// The same over each head of `x` `[rows, heads·gain.len()]`, in place.
    fn head_norm(&self, x: &mut Self::Rows, gain: &Self::Vector, eps: f32) -> Result<(), BackendError>;
    /// Multiplies `x` by every product's matrix. `x` is mutable for the quantized copy it caches.
    fn matmul(&self, x: &mut Self::Rows, products: &mut [Product<'_, Self>]) -> Result<(), BackendError>;
    /// Rotates `q` and `k` by their positions and writes `k` and `v` to the batch's slots of `layer`.
    fn rope_and_store_kv(&self, step: KvStep<'_, Self>, cache: &mut Self::Cache) -> Result<(), BackendError>;
    /// Causal attention of each row over its sequence's cached positions, its own included.
    /// Shapes: `q`, `out` `[rows, heads·head_dim]`.
    fn paged_attention(
        &self,
        step: AttentionStep<'_, Self>,
        cache: &Self::Cache,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;
    /// `out = silu(gate) · up` (Shazeer 2020, SwiGLU).
    fn gated_activation(
        &self,
        gate: &Self::Rows,
        up: &Self::Rows,
        out: &mut Self::Rows,
    ) -> Result<(), BackendError>;
    /// `out[i] = x[rows[i]]`
    fn gather(&self, x: &Self::Rows, rows: &[usize], out: &mut Self::Rows) -> Result<(), BackendError>;
    /// The rows as host memory.
    fn read<'a>(&self, x: &'a Self::Rows) -> Result<&'a [f32], BackendError>;
}

/// Arguments of [`Backend::rope_and_store_kv`].
pub struct KvStep<'a, B: Backend + ?Sized> {
    /// Layer of the cache.
    pub layer: usize,
    /// Slots and positions.
    pub batch: &'a Batch,
    /// Heads and their size.
    pub attention: &'a Attention,
    /// The rotation.
    pub rope: &'a Rope,
    /// `[rows, heads·head_dim]`, rotated in place.
    pub q: &'a mut B::Rows,
    /// `[rows, kv_heads·head_dim]`, rotated in place and stored.
    pub k: &'a mut B::Rows,
    /// `[rows, kv_heads·head_dim]`, stored.
    pub v: &'a B::Rows,
}

/// Arguments of [`Backend::paged_attention`].
pub struct AttentionStep<'a, B: Backend + ?Sized> {
    /// Layer of the cache.
    pub layer: usize,
    /// Spans and block tables.
    pub batch: &'a Batch,
    /// Heads and their size.
    pub attention: &'a Attention,
    /// Rotated queries.
    pub q: &'a B::Rows,
}

/// The spans of a batch as the kernels of every device take them.
fn attention_spans(batch: &Batch) -> Vec<AttentionSpan<'_>> {
    let span = |span: &Span| AttentionSpan {
        first_row: span.rows.start,
        rows: span.rows.len(),
        first_position: span.first_position as usize,
        block_table: &batch.block_tables[span.blocks.clone()],
    };
    batch.spans.iter().map(span).collect()
}
