//! The CPU kernels: one safe function per operation, run-time dispatch over instruction sets.

mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod buffer;
mod context;
mod float_matmul;
mod isa;
mod kv_cache;
mod math;
mod matmul;
mod matrix;
mod norm;
mod pinning;
mod pool;
mod rope;
mod shape;

pub use activation::{Gate, argmax, gated_activation, gated_silu, softmax_in_place};
pub use attention::{AttentionBatch, AttentionParams, AttentionSpan, paged_attention};
pub use buffer::{AlignedBuffer, DisjointMut};
pub use context::Cpu;
pub use float_matmul::{FloatMatrix, FloatType, float_matmul};
pub use isa::Isa;
pub use kv_cache::{BLOCK_TOKENS, KvCache, KvLayout, KvRows, KvSlot, KvType, store_kv};
pub use matmul::{Accumulate, ActivationFormat, Activations, Product, QuantizedRows, matmul, quantize_rows};
pub use matrix::Matrix;
pub use norm::{add_bias_in_place, add_in_place, rms_norm, rms_norm_in_place};
pub use rope::{RopePairing, RopeShape, RopeTable, rope_in_place};
