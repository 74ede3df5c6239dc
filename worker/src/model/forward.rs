//! One forward pass, written once for all decoder families over a [`Backend`].

use super::{ModelError, ModelSpec, weights::Weights};
use crate::activity::Activity;
use crate::backend::{Accumulate, AttentionStep, Backend, CacheShape, KvStep, KvType, Product};
use crate::batch::{Batch, Forward};
use std::sync::Arc;

/// Weights, cache and workspace of a loaded model on one device.
pub struct Model<B: Backend> {
    backend: B,
    spec: ModelSpec,
    weights: Weights<B>,
    cache: B::Cache,
    work: Workspace<B>,
    activity: Arc<Activity>,
}

/// Activation buffers, reused by every step.
struct Workspace<B: Backend> {
    /// The residual stream `[rows, width]`.
    x: B::Rows,
    /// The residual stream of the rows whose logits are wanted.
    x_last: B::Rows,
    /// Normalized input of attention or feed-forward.
    normed: B::Rows,
    q: B::Rows,
    k: B::Rows,
    v: B::Rows,
    /// Output of attention before its projection.
    attended: B::Rows,
    /// The same for the rows whose logits are wanted.
    attended_last: B::Rows,
    gate: B::Rows,
    up: B::Rows,
    activated: B::Rows,
    logits: B::Rows,
}

impl<B: Backend> Workspace<B> {
    fn new(backend: &B, spec: &ModelSpec) -> Result<Self, ModelError> {
        let q_width = spec.attention.heads * spec.attention.head_dim;
        let kv_width = spec.attention.kv_heads * spec.attention.head_dim;
        Ok(Self {
            x: backend.rows(spec.width)?,
            x_last: backend.rows(spec.width)?,
            normed: backend.rows(spec.width)?,
            q: backend.rows(q_width)?,
            k: backend.rows(kv_width)?,
            v: backend.rows(kv_width)?,
            attended: backend.rows(q_width)?,
            attended_last: backend.rows(q_width)?,
            gate: backend.rows(spec.ffn_width)?,
            up: backend.rows(spec.ffn_width)?,
            activated: backend.rows(spec.ffn_width)?,
            logits: backend.rows(spec.vocab_size)?,
        })
    }
}

impl<B: Backend> Model<B> {
    /// Puts a model together: weights already on `backend`, and a cache of `kv_blocks` blocks.
    pub fn new(
        backend: B,
        spec: ModelSpec,
        weights: Weights<B>,
        kv_blocks: usize,
        kv_type: KvType,
    ) -> Result<Self, ModelError> {
        let cache = backend.allocate_cache(spec.cache_shape(kv_blocks, kv_type))?;
        let work = Workspace::new(&backend, &spec)?;
        Ok(Self { backend, spec, weights, cache, work, activity: Arc::default() })
    }

    /// What the file says about the model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Bytes of weights on the device.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes(&self.backend)
    }

    /// Attention half of a layer: leaves the attended values in `work.attended`.
    fn attend(&mut self, layer: usize, batch: &Batch) -> Result<(), ModelError> {
        let Self { backend, spec, weights, cache, work, .. } = self;
        let weights = &weights.layers[layer];
        backend.rms_norm(&work.x, &weights.attn_norm, spec.norm_eps, &mut work.normed)?;
        backend.matmul(
            &mut work.normed,
            &mut [
                weights.q.product(Accumulate::Set, &mut work.q),
                weights.k.product(Accumulate::Set, &mut work.k),
                weights.v.product(Accumulate::Set, &mut work.v),
            ],
        )?;
        if let Some(gain) = &weights.q_norm {
            backend.head_norm(&mut work.q, gain, spec.norm_eps)?;
        }
        if let Some(gain) = &weights.k_norm {
            backend.head_norm(&mut work.k, gain, spec.norm_eps)?;
        }
        let step = KvStep {
            layer,
            batch,
            attention: &spec.attention,
            rope: &spec.rope,
            q: &mut work.q,
            k: &mut work.k,
            v: &work.v,
        };
        backend.rope_and_store_kv(step, cache)?;
        let step = AttentionStep { layer, batch, attention: &spec.attention, q: &work.q };
        backend.paged_attention(step, cache, &mut work.attended)?;
        Ok(())
    }
}

/// Second half of a layer over any set of rows: output projection, then the gated feed-forward network.
fn project_and_feed_forward<B: Backend>(
    backend: &B,
    weights: &super::weights::Layer<B>,
    eps: f32,
    rows: FeedForward<'_, B>,
) -> Result<(), ModelError> {
    let FeedForward { attended, x, normed, gate, up, activated } = rows;
    backend.matmul(attended, &mut [weights.attn_output.product(Accumulate::Add, x)])?;
    backend.rms_norm(x, &weights.ffn_norm, eps, normed)?;
    backend.matmul(
        normed,
        &mut [weights.gate.product(Accumulate::Set, gate), weights.up.product(Accumulate::Set, up)],
    )?;
    backend.gated_activation(gate, up, activated)?;
    backend.matmul(activated, &mut [weights.down.product(Accumulate::Add, x)])?;
    Ok(())
}

/// Buffers of [`project_and_feed_forward`].
struct FeedForward<'a, B: Backend> {
    attended: &'a mut B::Rows,
    x: &'a mut B::Rows,
    normed: &'a mut B::Rows,
    gate: &'a mut B::Rows,
    up: &'a mut B::Rows,
    activated: &'a mut B::Rows,
}

impl<B: Backend> Forward for Model<B> {
    type Error = ModelError;

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ModelError> {
        self.backend.begin_step(batch, &self.spec.rope)?;
        self.backend.embed(&self.weights.embedding, batch, &mut self.work.x)?;
        let last = self.weights.layers.len() - 1;
        for layer in 0..self.weights.layers.len() {
            self.activity.advance();
            self.attend(layer, batch)?;
            let Self { backend, spec, weights, work, .. } = self;
            let Workspace { x, x_last, normed, attended, attended_last, gate, up, activated, .. } = work;
            let (attended, x) = if layer == last {
                // Beyond the last attention only rows whose logits are wanted matter.
                if batch.logit_rows.is_empty() {
                    return Ok(&[]);
                }
                backend.gather(x, &batch.logit_rows, x_last)?;
                backend.gather(attended, &batch.logit_rows, attended_last)?;
                (attended_last, x_last)
            } else {
                (attended, x)
            };
            let rows = FeedForward { attended, x, normed, gate, up, activated };
            project_and_feed_forward(backend, &weights.layers[layer], spec.norm_eps, rows)?;
        }
        let Self { backend, spec, weights, work, .. } = self;
        backend.rms_norm(&work.x_last, &weights.output_norm, spec.norm_eps, &mut work.normed)?;
        backend.matmul(&mut work.normed, &mut [weights.output.product(Accumulate::Set, &mut work.logits)])?;
        Ok(backend.read(&work.logits)?)
    }

    fn vocab_size(&self) -> usize {
        self.spec.vocab_size
    }

    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), ModelError> {
        Ok(self.backend.copy_block(&mut self.cache, from, to)?)
    }

    fn report_to(&mut self, activity: Arc<Activity>) {
        self.activity = activity;
    }
}

impl<B: Backend> super::weights::Linear<B> {
    fn product<'a>(&'a self, accumulate: Accumulate, out: &'a mut B::Rows) -> Product<'a, B> {
        Product { weight: &self.weight, bias: self.bias.as_ref(), accumulate, out }
    }
}

impl ModelSpec {
    /// The cache of this model with `blocks` blocks.
    pub fn cache_shape(&self, blocks: usize, kv_type: KvType) -> CacheShape {
        CacheShape {
            layers: self.layers,
            blocks,
            kv_heads: self.attention.kv_heads,
            head_dim: self.attention.head_dim,
            kv_type,
        }
    }
}
