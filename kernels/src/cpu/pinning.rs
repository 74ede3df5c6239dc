//! Binding a thread to one processor, so that it keeps its caches and its neighbours theirs.
//!
//! Called by the pool for each of its threads where the worker's settings say so. It chooses nothing: which
//! processors are whose is the worker's and the gateway's business.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::KernelError;

/// Binds the calling thread to `cpu`. Errors: [`KernelError::Pinning`] where Linux refuses.
pub(super) fn pin_this_thread(cpu: usize) -> Result<(), KernelError> {
    let refused = |error: nix::Error| KernelError::Pinning { cpu, reason: error.desc() };
    let mut set = CpuSet::new();
    set.set(cpu).map_err(refused)?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(refused)
}
