//! A decoder-only transformer: what the file says it is (`spec`), its tensors (`weights`), one pass (`forward`).
//!
//! The engine drives [`Model`] through [`crate::batch::Forward`]. All families run through the same forward pass;
//! what tells them apart is data in [`ModelSpec`]. Nothing here knows a device: that is the backend's.

mod forward;
mod loading;
mod spec;
pub mod weights;

pub use forward::Model;
pub use loading::{CacheBudget, LoadProgress, Opened, open};
pub use spec::ModelSpec;

use crate::backend::BackendError;
use shared::gguf::GgufError;

/// A model file that cannot be served, or a pass that failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file itself is damaged.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A device operation failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The family is unknown.
    #[error("architecture `{architecture}` is not supported; supported: {supported}")]
    Architecture {
        /// `general.architecture`.
        architecture: String,
        /// Comma-separated names.
        supported: String,
    },
    /// The family is known, a feature of this model is not.
    #[error("{feature} is not supported ({key} = {value})")]
    Feature {
        /// In words.
        feature: &'static str,
        /// The metadata key or tensor that asks for it.
        key: String,
        /// Its value.
        value: String,
    },
    /// A metadata value is impossible.
    #[error("{key} is {value}: {reason}")]
    Metadata {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has an unexpected shape.
    #[error("tensor {name} has shape {actual:?}, expected {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// Its dimensions, row length first as GGUF stores them.
        actual: Vec<usize>,
        /// What the metadata asks for.
        expected: Vec<usize>,
    },
}
