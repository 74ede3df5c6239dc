//! What a file says about its tokenizer, before anything is made of it.

use super::TokenizerError;
use crate::gguf::{Array, GgufError, Metadata, Value};

/// The tokenizer's part of a GGUF file's metadata. Lists are empty and options `None` where the file is
/// silent.
#[derive(Clone, Debug, Default)]
pub struct VocabularySource<'a> {
    /// `tokenizer.ggml.model`: the kind of tokenizer.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: the pre-tokenizer.
    pub pre: Option<&'a str>,
    /// `general.name`, by which a few models are told apart that the file should tell apart otherwise.
    pub name: &'a str,
    /// `general.architecture`, likewise.
    pub architecture: &'a str,
    /// Token texts by id.
    pub tokens: Vec<&'a str>,
    /// By id; higher merges first.
    pub scores: Vec<f32>,
    /// By id; the numbers of the GGUF specification.
    pub token_types: Vec<i32>,
    /// Pairs, separated by a space; earlier merges first.
    pub merges: Vec<&'a str>,
    /// Ids of tokens with a role.
    pub roles: RoleIds,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.normalizer.lowercase`
    pub lowercase: Option<bool>,
    /// `tokenizer.ggml.normalizer.strip_accents`
    pub strip_accents: Option<bool>,
}

/// Which token has which role, where one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the GGUF specification")]
pub struct RoleIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    pub separator: Option<u32>,
    pub padding: Option<u32>,
    pub mask: Option<u32>,
    pub cls: Option<u32>,
    pub fim_prefix: Option<u32>,
    pub fim_suffix: Option<u32>,
    pub fim_middle: Option<u32>,
    pub fim_padding: Option<u32>,
    pub fim_repository: Option<u32>,
    pub fim_separator: Option<u32>,
}

impl<'a> VocabularySource<'a> {
    /// Reads the `tokenizer.ggml.*` keys.
    pub fn from_metadata(metadata: &'a Metadata) -> Result<Self, TokenizerError> {
        let strings = |key| metadata.strings(key).map(|found| found.map(|strings| strings.iter().collect()));
        Ok(Self {
            model: metadata.required_str("tokenizer.ggml.model")?,
            pre: metadata.str("tokenizer.ggml.pre")?,
            name: metadata.str("general.name")?.unwrap_or_default(),
            architecture: metadata.str("general.architecture")?.unwrap_or_default(),
            tokens: metadata.required_strings("tokenizer.ggml.tokens")?.iter().collect(),
            scores: scores(metadata)?,
            token_types: metadata.i32s("tokenizer.ggml.token_type")?.unwrap_or_default(),
            merges: strings("tokenizer.ggml.merges")?.unwrap_or_default(),
            roles: RoleIds::from_metadata(metadata),
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
            lowercase: metadata.bool("tokenizer.ggml.normalizer.lowercase")?,
            strip_accents: metadata.bool("tokenizer.ggml.normalizer.strip_accents")?,
        })
    }
}

impl RoleIds {
    fn from_metadata(metadata: &Metadata) -> Self {
        // Some files write -1, or the same as a u32, for a role that no token has.
        let id = |role: &str| {
            let value = metadata.get(&format!("tokenizer.ggml.{role}_token_id")).and_then(Value::integer);
            value.and_then(|value| u32::try_from(value).ok())
        };
        Self {
            bos: id("bos"),
            eos: id("eos"),
            eot: id("eot"),
            eom: id("eom"),
            unknown: id("unknown"),
            // The key is misspelled in the specification.
            separator: id("seperator"),
            padding: id("padding"),
            mask: id("mask"),
            cls: id("cls"),
            fim_prefix: id("prefix").or(id("fim_pre")),
            fim_suffix: id("suffix").or(id("fim_suf")),
            fim_middle: id("middle").or(id("fim_mid")),
            fim_padding: id("fim_pad"),
            fim_repository: id("fim_rep"),
            fim_separator: id("fim_sep"),
        }
    }

    /// Forgets ids that no token has, with a warning, as they must not reach a model.
    pub(super) fn keep_below(&mut self, tokens: usize) {
        for (role, id) in [
            ("bos", &mut self.bos),
            ("eos", &mut self.eos),
            ("eot", &mut self.eot),
            ("eom", &mut self.eom),
            ("unknown", &mut self.unknown),
            ("separator", &mut self.separator),
            ("padding", &mut self.padding),
            ("mask", &mut self.mask),
            ("cls", &mut self.cls),
            ("fim prefix", &mut self.fim_prefix),
            ("fim suffix", &mut self.fim_suffix),
            ("fim middle", &mut self.fim_middle),
            ("fim padding", &mut self.fim_padding),
            ("fim repository", &mut self.fim_repository),
            ("fim separator", &mut self.fim_separator),
        ] {
            if let Some(beyond) = id.filter(|&id| id as usize >= tokens) {
                tracing::warn!(
                    role,
                    id = beyond,
                    tokens,
                    "special token id is outside the vocabulary and is ignored"
                );
                *id = None;
            }
        }
    }
}

/// Scores are floats, or integers in a few old files.
fn scores(metadata: &Metadata) -> Result<Vec<f32>, GgufError> {
    const KEY: &str = "tokenizer.ggml.scores";
    match metadata.get(KEY) {
        Some(Value::Array(Array::I32(scores))) => Ok(scores.iter().map(|&score| score as f32).collect()),
        _ => Ok(metadata.f32s(KEY)?.unwrap_or_default().to_vec()),
    }
}
