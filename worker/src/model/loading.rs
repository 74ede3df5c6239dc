//! From a path to a model that computes: opens the file, sizes the cache, loads the weights, tells its progress.

use super::{Model, ModelError, ModelSpec, weights::Weights};
use crate::backend::{BLOCK_TOKENS, Backend, KvType};
use shared::gguf::Gguf;
use shared::ipc::message::ModelInfo;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Bytes of tensors loaded so far, and in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Loaded so far.
    pub done_bytes: u64,
    /// In the file.
    pub total_bytes: u64,
}

/// A model file opened and understood, its weights not yet loaded.
pub struct Opened {
    gguf: Arc<Gguf>,
    spec: ModelSpec,
    path_stem: String,
}

/// What the cache may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheBudget {
    /// Element type.
    pub kv_type: KvType,
    /// Bytes of keys and values in all.
    pub bytes: u64,
}

/// Opens and checks the file at `path`. Reads metadata and tensor table only.
pub fn open(path: &Path) -> Result<Opened, ModelError> {
    let gguf = Arc::new(Gguf::open(path)?);
    let spec = ModelSpec::from_gguf(&gguf)?;
    let path_stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Opened { gguf, spec, path_stem })
}

impl Opened {
    /// What the file says about the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What a gateway shows about the model; `weight_bytes` are those resident after loading.
    pub fn info(&self, weight_bytes: u64) -> ModelInfo {
        let mut by_type: BTreeMap<&str, u64> = BTreeMap::new();
        for tensor in self.gguf.tensors().filter(|tensor| tensor.dims().len() > 1) {
            *by_type.entry(tensor.kind.name()).or_default() += tensor.elements() as u64;
        }
        let quantization =
            by_type.iter().max_by_key(|(_, elements)| **elements).map_or("none", |(name, _)| name);
        ModelInfo {
            architecture: self.spec.architecture.clone(),
            name: if self.spec.name.is_empty() { self.path_stem.clone() } else { self.spec.name.clone() },
            parameters: self.gguf.tensors().map(|tensor| tensor.elements() as u64).sum(),
            quantization: quantization.to_owned(),
            vocab_size: self.spec.vocab_size as u32,
            context_train: self.spec.context_train,
            weight_bytes,
        }
    }

    /// Bytes of all tensors in the file.
    pub fn tensor_bytes(&self) -> u64 {
        self.gguf.tensors().map(|tensor| tensor.bytes as u64).sum()
    }

    /// KV blocks that fit `budget`, at least those of one full sequence of `context_tokens` rounded up.
    pub fn kv_blocks(&self, budget: CacheBudget, context_tokens: u32) -> usize {
        let block_bytes = self.spec.cache_shape(1, budget.kv_type).block_bytes() as u64;
        let affordable = (budget.bytes / block_bytes) as usize;
        affordable.max(context_tokens.div_ceil(BLOCK_TOKENS) as usize)
    }

    /// Loads the weights onto `backend` and allocates a cache of `kv_blocks` blocks.
    pub fn load<B: Backend>(
        &self,
        backend: B,
        kv_blocks: usize,
        kv_type: KvType,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Model<B>, ModelError> {
        let total_bytes = self.tensor_bytes();
        let mut done_bytes = 0;
        let weights = Weights::load(&backend, &self.gguf, &self.spec, &mut |bytes| {
            done_bytes += bytes;
            progress(LoadProgress { done_bytes: done_bytes.min(total_bytes), total_bytes });
        })?;
        Model::new(backend, self.spec.clone(), weights, kv_blocks, kv_type)
    }
}
