//! The CPU kernels: one safe function per operation, run-time dispatch over instruction sets.
