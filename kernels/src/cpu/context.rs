//! [`Cpu`]: what every operation takes first, the chosen instruction set and the threads to run on.

use std::ops::Range;

use super::Isa;
use super::pool::Pool;
use crate::KernelError;

/// The execution context of one worker: an instruction set that is present, and a thread pool.
///
/// Results never depend on either. Dropping it joins the threads.
pub struct Cpu {
    isa: Isa,
    pool: Pool,
}

impl Cpu {
    /// A context running `isa` on `threads` threads, the calling one included.
    ///
    /// Errors: [`KernelError::UnsupportedIsa`] where this processor lacks `isa`; [`KernelError::OutOfRange`]
    /// for no or more than 1024 threads; [`KernelError::OutOfMemory`] when a thread cannot be started.
    pub fn new(isa: Isa, threads: usize) -> Result<Cpu, KernelError> {
        Ok(Cpu { isa: isa.require()?, pool: Pool::new(threads)? })
    }

    /// A context running `isa` on one thread for each of `cpus`, bound to it; the calling thread is the first and
    /// stays bound, as do threads it starts later.
    ///
    /// Errors: those of [`Cpu::new`]; [`KernelError::Pinning`] for a processor that this process may not use.
    pub fn pinned(isa: Isa, cpus: &[usize]) -> Result<Cpu, KernelError> {
        Ok(Cpu { isa: isa.require()?, pool: Pool::pinned(cpus)? })
    }

    /// As [`Cpu::new`], without asking whether `isa` is present: for the self-check, and for tests that emulate it.
    ///
    /// # Safety
    /// The instructions of `isa` work in this process, if only because a signal handler carries them out.
    #[doc(hidden)]
    pub unsafe fn assuming(isa: Isa, threads: usize) -> Result<Cpu, KernelError> {
        Ok(Cpu { isa, pool: Pool::new(threads)? })
    }

    /// The instruction set; it is present on this processor.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that run a region, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `task` over disjoint ranges covering `0..items`, in chunks of `grain` (the last may be shorter), on
    /// the caller and the pool's threads; returns when all are done. Ranges start at multiples of `grain`.
    ///
    /// A single chunk, and a region started while another runs, is run on the caller alone. A panic in `task`
    /// is raised again here once no thread runs it any more.
    pub fn for_each_chunk(&self, items: usize, grain: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        self.pool.run(items, grain, task);
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("isa", &self.isa).field("threads", &self.threads()).finish()
    }
}
