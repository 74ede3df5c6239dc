//! Why a vocabulary cannot be used.

use crate::error::Category;
use crate::gguf::GgufError;

/// A GGUF file's tokenizer is missing, damaged, or of a kind not supported here.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A metadata value is missing or of the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// `tokenizer.ggml.model` names a kind of tokenizer that is not implemented.
    #[error("tokenizer.ggml.model is {0:?}, supported are llama, gpt2 and bert")]
    UnsupportedModel(String),
    /// No tokens, or more than ids are given out for.
    #[error("tokenizer.ggml.tokens has {found} elements, expected 1 to {limit}")]
    TokenCount {
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A token longer than any vocabulary's, which would make merging slow.
    #[error("token {id} of tokenizer.ggml.tokens is {bytes} bytes long, limit {limit}")]
    TokenTooLong {
        /// Which.
        id: usize,
        /// Its length.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// A list that runs parallel to the tokens is shorter than they are.
    #[error("{key} has {found} elements for {tokens} tokens")]
    TooShort {
        /// The metadata key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// How many tokens there are.
        tokens: usize,
    },
    /// Byte-level BPE without its merges.
    #[error("tokenizer.ggml.merges is missing or empty")]
    NoMerges,
    /// The automaton that finds special tokens could not be built.
    #[error("special tokens cannot be searched for: {0}")]
    SpecialTokens(String),
}

impl TokenizerError {
    /// A file with a bad vocabulary stays bad.
    pub fn category(&self) -> Category {
        Category::User
    }
}
