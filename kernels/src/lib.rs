//! Compute kernels with a safe face, and the one home of `unsafe` in ROCmForge.
//!
//! The worker's backends are the only callers. Every public function checks the lengths it is given and
//! returns [`KernelError`] when they do not fit; inside, `unsafe` blocks rely on those checks alone.
//! What holds always: a result depends on its own inputs only, never on how many rows were computed
//! together, on the thread count or on the instruction set (promise P3 of the design).
//! This crate knows nothing of models, files, requests or threads other than its own pool.

pub mod blocks;
pub mod cpu;
mod error;
pub mod hip;

pub use error::KernelError;
