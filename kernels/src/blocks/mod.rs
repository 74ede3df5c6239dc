//! The ggml block types.
