//! The CPU kernels: one safe function per operation, run-time dispatch over instruction sets.

mod buffer;
mod context;
mod isa;
mod pool;

pub use buffer::{AlignedBuffer, DisjointMut};
pub use context::Cpu;
pub use isa::Isa;
