//! AMD GPUs: a safe face over the HIP runtime and the kernels of `device/`.
//!
//! The worker's `hip` backend is the caller. [`topology`] lists the GPUs of a host without loading HIP and is always
//! there; the rest needs the cargo feature `hip`, which links the HIP runtime and builds the kernels. What holds
//! always: lengths are checked before a kernel starts, and a result has the very bits of the CPU kernel of the same
//! name, since both keep the same order of f32 operations on the same integers (promise P3, across backends).
//! Errors name the call that failed and its place; after a sticky one ([`HipError::is_sticky`]) only a restart of
//! the process helps. Work is asynchronous: only downloads wait for it.

pub mod topology;

#[cfg(feature = "hip")]
mod args;
#[cfg(feature = "hip")]
mod attention;
#[cfg(feature = "hip")]
mod buffer;
#[cfg(feature = "hip")]
mod code_objects;
#[cfg(feature = "hip")]
mod error;
#[cfg(feature = "hip")]
mod ffi;
#[cfg(feature = "hip")]
mod format;
#[cfg(feature = "hip")]
mod gpu;
#[cfg(feature = "hip")]
mod kv_cache;
#[cfg(feature = "hip")]
mod matmul;
#[cfg(feature = "hip")]
mod matrix;
#[cfg(feature = "hip")]
mod pack;
#[cfg(feature = "hip")]
mod rows;
#[cfg(feature = "hip")]
mod stream;

#[cfg(feature = "hip")]
pub use {
    attention::{AttentionPlan, AttentionShape},
    buffer::{DeviceBuffer, PinnedBuffer},
    code_objects::architectures,
    error::HipError,
    gpu::{Gpu, device_count},
    kv_cache::{KvCache, KvElement, KvLayout, Rotation, RotationArrays},
    matmul::Product,
    matrix::Matrix,
    rows::{Norm, Rows},
    stream::{Event, Stream},
};
