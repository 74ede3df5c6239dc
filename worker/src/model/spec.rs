//! What a GGUF file's metadata says about a model: the data that makes one forward pass serve every family.
//!
//! Keys and their meaning follow the GGUF specification (ggml repository, docs/gguf.md). Everything is checked
//! here, so that the rest of the worker can rely on it: counts are positive and bounded, heads divide, and
//! features the forward pass lacks are refused by name.

use super::ModelError;
use crate::backend::{Attention, Rope, RopePairing};
use shared::gguf::{Gguf, Metadata, PerLayer};

/// Families and how each pairs rotating elements.
const FAMILIES: [(&str, RopePairing); 3] =
    [("llama", RopePairing::Adjacent), ("qwen2", RopePairing::Halves), ("qwen3", RopePairing::Halves)];

/// Bounds of plausible models; beyond them a product of two could overflow or ask for absurd memory.
const LAYERS_MAX: u32 = 1024;
const WIDTH_MAX: u32 = 1 << 20;
const HEADS_MAX: u32 = 1 << 12;
const VOCAB_MAX: u32 = 1 << 24;
const CONTEXT_MAX: u32 = 1 << 26;
/// Base of the rotation angles where the file names none (Su et al. 2021).
const ROPE_BASE_DEFAULT: f32 = 10_000.0;

/// Shape and arithmetic of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `general.architecture`
    pub architecture: String,
    /// `general.name`, or empty.
    pub name: String,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Elements of the residual stream.
    pub width: usize,
    /// Elements of the feed-forward network's inner layer.
    pub ffn_width: usize,
    /// Heads and their size.
    pub attention: Attention,
    /// Added to the mean square in RMS norms.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Positions the model was trained for.
    pub context_train: u32,
}

impl ModelSpec {
    /// Reads and checks the metadata of `gguf`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let metadata = gguf.metadata();
        let architecture = metadata.required_str("general.architecture")?.to_owned();
        let Some(&(_, pairing)) = FAMILIES.iter().find(|(name, _)| *name == architecture) else {
            let supported = FAMILIES.map(|(name, _)| name).join(", ");
            return Err(ModelError::Architecture { architecture, supported });
        };
        let keys = Keys { metadata, architecture: &architecture };
        keys.refuse_experts()?;
        let width = keys.count("embedding_length", WIDTH_MAX)?;
        let attention = keys.attention(width)?;
        let rope = keys.rope(gguf, attention.head_dim, pairing)?;
        Ok(Self {
            name: metadata.str("general.name")?.unwrap_or_default().to_owned(),
            vocab_size: keys.vocab_size(gguf)?,
            layers: keys.count("block_count", LAYERS_MAX)? as usize,
            width: width as usize,
            ffn_width: keys.uniform("feed_forward_length", WIDTH_MAX)? as usize,
            attention,
            norm_eps: keys.norm_eps()?,
            rope,
            context_train: keys.count("context_length", CONTEXT_MAX)?,
            architecture,
        })
    }
}

/// Typed access to the keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn impossible(&self, name: &str, value: impl ToString, reason: impl Into<String>) -> ModelError {
        ModelError::Metadata { key: self.key(name), value: value.to_string(), reason: reason.into() }
    }

    fn optional(&self, name: &str) -> Result<Option<u32>, ModelError> {
        Ok(self.metadata.u32(&self.key(name))?)
    }

    /// A required count in `1..=max`.
    fn count(&self, name: &str, max: u32) -> Result<u32, ModelError> {
        let value = self.metadata.required_u32(&self.key(name))?;
        self.within(name, value, max)
    }

    fn within(&self, name: &str, value: u32, max: u32) -> Result<u32, ModelError> {
        if (1..=max).contains(&value) {
            Ok(value)
        } else {
            Err(self.impossible(name, value, format!("allowed 1 to {max}")))
        }
    }

    /// A count that may be stored per layer, but must be the same for all.
    fn uniform(&self, name: &str, max: u32) -> Result<u32, ModelError> {
        let key = self.key(name);
        let layers = self.count("block_count", LAYERS_MAX)? as usize;
        let value = match self.metadata.required_u32_per_layer(&key, layers)? {
            PerLayer::All(value) => value,
            PerLayer::Each(values) => {
                let first = values.first().copied().unwrap_or(0);
                if values.iter().any(|value| *value != first) {
                    let feature = "a different count per layer";
                    return Err(ModelError::Feature { feature, key, value: format!("{values:?}") });
                }
                first
            }
        };
        self.within(name, value, max)
    }

    fn refuse_experts(&self) -> Result<(), ModelError> {
        match self.optional("expert_count")? {
            None | Some(0) => Ok(()),
            Some(count) => Err(ModelError::Feature {
                feature: "a mixture of experts",
                key: self.key("expert_count"),
                value: count.to_string(),
            }),
        }
    }

    fn attention(&self, width: u32) -> Result<Attention, ModelError> {
        let heads = self.uniform("attention.head_count", HEADS_MAX)?;
        let kv_key = self.key("attention.head_count_kv");
        let kv_heads = match self.metadata.get(&kv_key) {
            None => heads,
            Some(_) => self.uniform("attention.head_count_kv", HEADS_MAX)?,
        };
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("does not divide the {heads} query heads");
            return Err(self.impossible("attention.head_count_kv", kv_heads, reason));
        }
        let head_dim = match self.optional("attention.key_length")? {
            Some(length) => self.within("attention.key_length", length, WIDTH_MAX)?,
            None if width.is_multiple_of(heads) => width / heads,
            None => {
                let reason = format!("does not divide the width {width}");
                return Err(self.impossible("attention.head_count", heads, reason));
            }
        };
        let value_length = self.optional("attention.value_length")?.unwrap_or(head_dim);
        if value_length != head_dim {
            return Err(ModelError::Feature {
                feature: "a value length other than the key length",
                key: self.key("attention.value_length"),
                value: value_length.to_string(),
            });
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        Ok(Attention {
            heads: heads as usize,
            kv_heads: kv_heads as usize,
            head_dim: head_dim as usize,
            scale,
        })
    }

    fn norm_eps(&self) -> Result<f32, ModelError> {
        let name = "attention.layer_norm_rms_epsilon";
        let eps = self.metadata.required_f32(&self.key(name))?;
        if eps.is_finite() && eps >= 0.0 {
            Ok(eps)
        } else {
            Err(self.impossible(name, eps, "must be finite and not negative"))
        }
    }

    /// The vocabulary's size is what the embedding table has; a key that contradicts it is refused by the
    /// table's shape check in `weights`.
    fn vocab_size(&self, gguf: &Gguf) -> Result<usize, ModelError> {
        let name = super::weights::EMBEDDING;
        let tensor = gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_owned() })?;
        let rows = tensor.rows();
        match u32::try_from(rows) {
            Ok(rows @ 1..=VOCAB_MAX) => Ok(rows as usize),
            _ => Err(ModelError::Metadata {
                key: format!("rows of tensor {name}"),
                value: rows.to_string(),
                reason: format!("allowed 1 to {VOCAB_MAX}"),
            }),
        }
    }

    /// Angles per position: base^(-2i/dims), divided by the file's per-pair factors (Llama 3.1) and by the
    /// linear scaling factor (Chen et al. 2023) where there is one.
    fn rope(&self, gguf: &Gguf, head_dim: usize, pairing: RopePairing) -> Result<Rope, ModelError> {
        let dims = self.optional("rope.dimension_count")?.map_or(head_dim, |dims| dims as usize);
        if dims == 0 || !dims.is_multiple_of(2) || dims > head_dim {
            let reason = format!("must be even, positive and at most the head size {head_dim}");
            return Err(self.impossible("rope.dimension_count", dims, reason));
        }
        let base = self.metadata.f32(&self.key("rope.freq_base"))?.unwrap_or(ROPE_BASE_DEFAULT);
        if !(base.is_finite() && base > 0.0) {
            return Err(self.impossible("rope.freq_base", base, "must be finite and positive"));
        }
        let linear = self.linear_scaling()?;
        let factors = super::weights::rope_factors(gguf, dims / 2)?;
        let inv_freq = (0..dims / 2)
            .map(|pair| {
                let factor = factors.as_ref().map_or(1.0, |factors| f64::from(factors[pair]));
                let angle = f64::from(base).powf(-2.0 * pair as f64 / dims as f64);
                (angle / factor / f64::from(linear)) as f32
            })
            .collect();
        Ok(Rope { inv_freq, pairing })
    }

    fn linear_scaling(&self) -> Result<f32, ModelError> {
        let kind_key = self.key("rope.scaling.type");
        match self.metadata.str(&kind_key)? {
            // A factor may stand beside it all the same.
            Some("none") => return Ok(1.0),
            None | Some("linear") => {}
            Some(kind) => {
                let feature = "this kind of rope scaling";
                return Err(ModelError::Feature { feature, key: kind_key, value: kind.to_owned() });
            }
        }
        let mut factor = None;
        for name in ["rope.scaling.factor", "rope.scale_linear"] {
            factor = factor.or(self.metadata.f32(&self.key(name))?.map(|value| (name, value)));
        }
        match factor {
            None => Ok(1.0),
            // Converters write 0 for "no scaling".
            Some((_, 0.0)) => Ok(1.0),
            Some((_, value)) if value.is_finite() && value > 0.0 => Ok(value),
            Some((name, value)) => Err(self.impossible(name, value, "must be finite and positive")),
        }
    }
}
