//! Reads GGUF model files: metadata, tensor table, and the tensors' bytes through a memory map.
//!
//! The worker loads weights through it, the gateway reads tokenizer and chat template from it, and the
//! CLI lists it. Versions 2 and 3, little-endian, one file or all parts of a split one.
//!
//! What always holds: a file is hostile until read. Every count, length, offset and product is checked
//! before use, nothing is allocated that the file's own bytes do not back (at most eight times its header
//! plus a constant), and every refusal is one line naming field, byte offset, file, value and limit. Once
//! [`Gguf::open`] has returned, every tensor lies inside its file, aligned, and apart from all others.
//!
//! What it deliberately does not do: write files (only the test builder in `testing` does), convert or
//! dequantize weights (that is `kernels`), know model families (that is the worker's `ModelSpec`), or read
//! big-endian files.
//!
//! Source: the GGUF specification, `docs/gguf.md` of the ggml repository.

mod array;
mod cursor;
mod error;
mod file;
mod header;
mod mapping;
mod metadata;
mod split;
mod tensor;
mod tensor_type;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod value;

pub use array::{Array, StringArray};
pub use error::GgufError;
pub use file::Gguf;
pub use metadata::{Metadata, PerLayer};
pub use tensor::TensorInfo;
pub use tensor_type::TensorType;
pub use value::{Value, ValueType};
