//! The tensors of a model: found in the file by name, checked against the spec, put on the device.
//!
//! Names follow the GGUF convention (`blk.N.attn_q.weight`). A tensor's bytes are read from the memory map once;
//! after its device copy is made the mapped pages are given back, so that weights are not held twice.

use super::{ModelError, ModelSpec};
use crate::backend::{Backend, BackendError};
use kernels::blocks::{BlockType, dequantize};
use shared::gguf::{Gguf, TensorInfo};
use std::sync::Arc;

/// Name of the embedding table, which also says the vocabulary's size.
pub const EMBEDDING: &str = "token_embd.weight";
/// Per-pair divisors of the rotation angles (Llama 3.1).
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A tensor in the file, cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    gguf: Arc<Gguf>,
    info: TensorInfo,
    block_type: BlockType,
}

impl Tensor {
    /// Finds `name` in `gguf`.
    pub fn find(gguf: &Arc<Gguf>, name: &str) -> Result<Self, ModelError> {
        Self::find_optional(gguf, name)?.ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })
    }

    /// Finds `name` where the file has it.
    pub fn find_optional(gguf: &Arc<Gguf>, name: &str) -> Result<Option<Self>, ModelError> {
        let Some(info) = gguf.tensor(name) else { return Ok(None) };
        let block_type = BlockType::from_ggml_id(info.kind.id()).ok_or_else(|| BackendError::TensorType {
            tensor: name.to_owned(),
            kind: info.kind.name().to_owned(),
            backend: "cpu",
        })?;
        Ok(Some(Self { gguf: Arc::clone(gguf), info: info.clone(), block_type }))
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Its element type.
    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.info.row_len()
    }

    /// Rows, over all further dimensions.
    pub fn rows(&self) -> usize {
        self.info.rows()
    }

    /// The raw blocks.
    pub fn bytes(&self) -> &[u8] {
        self.gguf.data(&self.info)
    }

    /// One row's raw blocks.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        let stride = self.info.row_bytes();
        &self.bytes()[row * stride..(row + 1) * stride]
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Result<Vec<f32>, BackendError> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        dequantize(self.block_type, self.bytes(), &mut out)
            .map_err(|source| BackendError::Kernel { operation: "dequantize", source })?;
        Ok(out)
    }

    /// Gives the mapped pages back to the system; they are read again from the file if needed.
    pub fn release_pages(&self) {
        self.gguf.advise_unneeded(&self.info);
    }

    fn expect_shape(&self, expected: &[usize]) -> Result<(), ModelError> {
        // Trailing dimensions of one carry no meaning.
        let mut actual = self.info.dims();
        while let [rest @ .., 1] = actual
            && actual.len() > expected.len()
        {
            actual = rest;
        }
        if actual == expected {
            return Ok(());
        }
        let (actual, expected) = (actual.to_vec(), expected.to_vec());
        Err(ModelError::TensorShape { name: self.name().to_owned(), actual, expected })
    }
}

/// A matrix with its optional bias.
pub struct Linear<B: Backend> {
    /// `[outputs, inputs]`
    pub weight: B::Matrix,
    /// `[outputs]`
    pub bias: Option<B::Vector>,
}

/// One transformer layer.
pub struct Layer<B: Backend> {
    /// Gain of the norm before attention.
    pub attn_norm: B::Vector,
    /// Query projection.
    pub q: Linear<B>,
    /// Key projection.
    pub k: Linear<B>,
    /// Value projection.
    pub v: Linear<B>,
    /// Gain of the per-head query norm (Qwen3).
    pub q_norm: Option<B::Vector>,
    /// Gain of the per-head key norm (Qwen3).
    pub k_norm: Option<B::Vector>,
    /// Projection of the attended values.
    pub attn_output: Linear<B>,
    /// Gain of the norm before the feed-forward network.
    pub ffn_norm: B::Vector,
    /// Gate projection.
    pub gate: Linear<B>,
    /// Up projection.
    pub up: Linear<B>,
    /// Down projection.
    pub down: Linear<B>,
}

/// All weights of a model.
pub struct Weights<B: Backend> {
    /// The embedding table.
    pub embedding: B::Embedding,
    /// The layers.
    pub layers: Vec<Layer<B>>,
    /// Gain of the last norm.
    pub output_norm: B::Vector,
    /// Projection to the vocabulary; the embedding table again where the file has no own.
    pub output: Linear<B>,
}

impl<B: Backend> Weights<B> {
    /// Loads every tensor of `spec`; `loaded` is told the file bytes of each as it is done.
    pub fn load(
        backend: &B,
        gguf: &Arc<Gguf>,
        spec: &ModelSpec,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Self, ModelError> {
        let mut loader = Loader { backend, gguf, loaded };
        let embedding = Tensor::find(gguf, EMBEDDING)?;
        embedding.expect_shape(&[spec.width, spec.vocab_size])?;
        let layers = (0..spec.layers).map(|index| loader.layer(spec, index)).collect::<Result<_, _>>()?;
        let output_norm = loader.vector("output_norm.weight", spec.width)?;
        let has_own_output = gguf.tensor("output.weight").is_some();
        let stem = if has_own_output { "output" } else { "token_embd" };
        let output = loader.linear(stem, spec.width, spec.vocab_size)?;
        Ok(Self { embedding: backend.load_embedding(&embedding)?, layers, output_norm, output })
    }

    /// Bytes of all matrices on the device.
    pub fn bytes(&self, backend: &B) -> u64 {
        let layers =
            self.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.attn_output, &l.gate, &l.up, &l.down]);
        layers.chain([&self.output]).map(|linear| backend.matrix_bytes(&linear.weight) as u64).sum()
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a B,
    gguf: &'a Arc<Gguf>,
    loaded: &'a mut dyn FnMut(u64),
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&mut self, spec: &ModelSpec, index: usize) -> Result<Layer<B>, ModelError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let q_width = spec.attention.heads * spec.attention.head_dim;
        let kv_width = spec.attention.kv_heads * spec.attention.head_dim;
        Ok(Layer {
            attn_norm: self.vector(&name("attn_norm.weight"), spec.width)?,
            q: self.linear(&name("attn_q"), spec.width, q_width)?,
            k: self.linear(&name("attn_k"), spec.width, kv_width)?,
            v: self.linear(&name("attn_v"), spec.width, kv_width)?,
            q_norm: self.vector_optional(&name("attn_q_norm.weight"), spec.attention.head_dim)?,
            k_norm: self.vector_optional(&name("attn_k_norm.weight"), spec.attention.head_dim)?,
            attn_output: self.linear(&name("attn_output"), q_width, spec.width)?,
            ffn_norm: self.vector(&name("ffn_norm.weight"), spec.width)?,
            gate: self.linear(&name("ffn_gate"), spec.width, spec.ffn_width)?,
            up: self.linear(&name("ffn_up"), spec.width, spec.ffn_width)?,
            down: self.linear(&name("ffn_down"), spec.ffn_width, spec.width)?,
        })
    }

    fn linear(&mut self, stem: &str, inputs: usize, outputs: usize) -> Result<Linear<B>, ModelError> {
        let tensor = Tensor::find(self.gguf, &format!("{stem}.weight"))?;
        tensor.expect_shape(&[inputs, outputs])?;
        let weight = self.backend.load_matrix(&tensor)?;
        tensor.release_pages();
        (self.loaded)(tensor.bytes().len() as u64);
        Ok(Linear { weight, bias: self.vector_optional(&format!("{stem}.bias"), outputs)? })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, ModelError> {
        self.vector_optional(name, len)?.ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })
    }

    fn vector_optional(&mut self, name: &str, len: usize) -> Result<Option<B::Vector>, ModelError> {
        let Some(tensor) = Tensor::find_optional(self.gguf, name)? else { return Ok(None) };
        tensor.expect_shape(&[len])?;
        (self.loaded)(tensor.bytes().len() as u64);
        Ok(Some(self.backend.load_vector(&tensor)?))
    }
}

/// The per-pair divisors of the rotation angles, where the file has them; `pairs` long, all positive.
pub fn rope_factors(gguf: &Gguf, pairs: usize) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(info) = gguf.tensor(ROPE_FACTORS) else { return Ok(None) };
    let values: Vec<f32> = gguf
        .data(info)
        .chunks_exact(size_of::<f32>())
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    if info.kind.name() != "F32" || values.len() != pairs {
        return Err(ModelError::TensorShape {
            name: ROPE_FACTORS.to_owned(),
            actual: info.dims().to_vec(),
            expected: vec![pairs],
        });
    }
    match values.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
        None => Ok(Some(values)),
        Some(value) => Err(ModelError::Metadata {
            key: ROPE_FACTORS.to_owned(),
            value: value.to_string(),
            reason: "factors must be finite and positive".to_owned(),
        }),
    }
}
