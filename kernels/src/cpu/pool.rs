//! The threads behind [`Cpu`](super::Cpu): a pool for very many very short parallel regions.
//!
//! A decode step runs some hundred regions of tens of microseconds each, so entering one must cost about one
//! microsecond. Idle workers spin for [`SPIN`] and then park, using no processor time until the next region.
//! Each thread works through a contiguous share of the chunks, the same one in every region of that length, so
//! that it streams memory in order and finds what it wrote before in its own cache; then it helps the others.
//! What always holds: a region ends only when every chunk is done and no worker still runs its closure; the
//! caller never waits for a worker that has not joined (one parked or descheduled costs nothing); a panic in
//! a task reaches the caller. The pool pins its threads only where it is told to, and knows nothing about what it runs.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::pinning::pin_this_thread;
use crate::KernelError;

/// How long an idle worker spins before it parks. Waking a parked thread costs 10 to 60 µs on the virtual
/// machines measured, and the single-threaded gaps of a decode step stay below 100 µs.
const SPIN: Duration = Duration::from_micros(200);
/// Spins between two looks at the clock (about 2 µs).
const SPINS_PER_LOOK: u32 = 64;
/// Threads a pool may have: a bound against nonsense, above the cores of any host there is.
const MAX_THREADS: usize = 1024;

/// One parallel region: the closure and its chunks. Lives in `Shared::region` while the gate is open.
#[derive(Clone, Copy)]
struct Region {
    /// The caller's closure; valid until the region ends, which is when `Pool::run` returns.
    task: *const (dyn Fn(Range<usize>) + Sync),
    items: usize,
    grain: usize,
    chunks: usize,
}

/// A value alone on its pair of cache lines, so that spinning on it does not slow its neighbours.
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// Bit 0: open; bits 1 to 15: workers that joined; bits 16 up: number of the region.
    gate: Line<AtomicU64>,
    /// The next chunk to claim of each thread's share, the caller's first.
    next: Box<[Line<AtomicUsize>]>,
    /// Workers that joined the present region and have left it.
    left: Line<AtomicUsize>,
    region: UnsafeCell<Option<Region>>,
    stop: AtomicBool,
    /// The first panic of the present region.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

const OPEN: u64 = 1;
const JOIN: u64 = 2;
const NUMBER: u64 = 1 << 16;

// SAFETY: `region` is written by the one caller holding `Pool::busy` while the gate is closed and everyone who
// joined has left, and read only after joining through the gate (acquire); `Region::task` is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `region` is only followed under the protocol above.
unsafe impl Send for Shared {}

struct Worker {
    handle: Option<JoinHandle<()>>,
    thread: Thread,
    parked: Arc<AtomicBool>,
}

/// A fixed set of worker threads; the calling thread is one more.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Set while a region runs; a region started meanwhile (nested, or by another thread) runs on its caller.
    busy: AtomicBool,
}

impl Pool {
    /// A pool running regions on `threads` threads, the caller included.
    pub(crate) fn new(threads: usize) -> Result<Pool, KernelError> {
        Pool::start(threads, |_| None)
    }

    /// A pool of one thread for each of `cpus`, bound to it. The caller is the first of them.
    pub(crate) fn pinned(cpus: &[usize]) -> Result<Pool, KernelError> {
        let pool = Pool::start(cpus.len(), |index| cpus.get(index).copied())?;
        // Last, since new threads inherit where their creator may run.
        cpus.iter().take(1).try_for_each(|&cpu| pin_this_thread(cpu))?;
        Ok(pool)
    }

    fn start(threads: usize, cpu: impl Fn(usize) -> Option<usize>) -> Result<Pool, KernelError> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(KernelError::OutOfRange { what: "threads", value: threads, limit: MAX_THREADS + 1 });
        }
        let shared = Arc::new(Shared {
            gate: Line(AtomicU64::new(0)),
            next: (0..threads).map(|_| Line(AtomicUsize::new(0))).collect(),
            left: Line(AtomicUsize::new(0)),
            region: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::new(), busy: AtomicBool::new(false) };
        for index in 1..threads {
            pool.workers.push(Worker::spawn(index, cpu(index), &pool.shared)?);
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task` over `0..items` in chunks of `grain` and returns when all are done.
    pub(crate) fn run(&self, items: usize, grain: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        let grain = grain.max(1);
        let chunks = items.div_ceil(grain);
        let alone = chunks <= 1 || self.workers.is_empty();
        if alone || self.busy.swap(true, Ordering::Acquire) {
            for start in (0..items).step_by(grain) {
                task(start..items.min(start.saturating_add(grain)));
            }
            return;
        }
        self.open(Region { task: erase_lifetime(task), items, grain, chunks });
        self.shared.work(0);
        self.close();
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }

    /// Publishes `region` and wakes whoever is parked, as many as there are chunks beside the caller's.
    fn open(&self, region: Region) {
        let shared = &*self.shared;
        // SAFETY: `busy` is ours, the gate is closed and all who joined have left: nobody else looks here.
        unsafe { *shared.region.get() = Some(region) };
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(shared.share(thread, region.chunks).start, Ordering::Relaxed);
        }
        shared.left.0.store(0, Ordering::Relaxed);
        let number = shared.gate.0.load(Ordering::Relaxed) / NUMBER + 1;
        // Sequentially consistent, as are the accesses to `parked`: either we see a worker parked, or it sees
        // the gate open before it parks.
        shared.gate.0.store((number * NUMBER) | OPEN, Ordering::SeqCst);
        for worker in self.workers.iter().take(region.chunks - 1) {
            if worker.parked.load(Ordering::SeqCst) && worker.parked.swap(false, Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
    }

    /// Lets nobody else in and waits until all who joined have left.
    fn close(&self) {
        let gate = self.shared.gate.0.fetch_and(!OPEN, Ordering::AcqRel);
        let joined = (gate % NUMBER / JOIN) as usize;
        let mut spins = 0u32;
        while self.shared.left.0.load(Ordering::Acquire) < joined {
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(SPINS_PER_LOOK * 16) {
                // The worker may be waiting for this very processor.
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker catches the panics of its tasks; there is nothing to learn here.
                let _ = handle.join();
            }
        }
    }
}

impl Worker {
    /// Starts a thread, bound to `cpu` if there is one, and returns once it is.
    fn spawn(index: usize, cpu: Option<usize>, shared: &Arc<Shared>) -> Result<Worker, KernelError> {
        let parked = Arc::new(AtomicBool::new(false));
        let (shared, seen) = (Arc::clone(shared), Arc::clone(&parked));
        let (report, bound) = mpsc::sync_channel(1);
        let failed = KernelError::OutOfMemory { what: "a worker thread", bytes: 2 << 20 };
        let handle = thread::Builder::new()
            .name(format!("cpu-{index}"))
            .spawn(move || {
                let outcome = cpu.map_or(Ok(()), pin_this_thread);
                let is_bound = outcome.is_ok();
                // The spawner waits for it.
                let _ = report.send(outcome);
                if is_bound {
                    shared.serve(index, &seen);
                }
            })
            .map_err(|_| failed.clone())?;
        bound.recv().map_err(|_| failed)??;
        Ok(Worker { thread: handle.thread().clone(), handle: Some(handle), parked })
    }
}

impl Shared {
    /// A worker's life: join each region it sees, spin, park.
    fn serve(&self, thread: usize, parked: &AtomicBool) {
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let gate = self.gate.0.load(Ordering::Acquire);
            if gate & OPEN == 0 || gate / NUMBER == done {
                self.wait(done, parked);
                continue;
            }
            let joined = self.gate.0.compare_exchange(gate, gate + JOIN, Ordering::AcqRel, Ordering::Relaxed);
            if joined.is_ok() {
                done = gate / NUMBER;
                self.work(thread);
                self.left.0.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Returns when a region other than `done` may be open or the pool stops.
    fn wait(&self, done: u64, parked: &AtomicBool) {
        let idle = |gate: u64| gate & OPEN == 0 || gate / NUMBER == done;
        let since = Instant::now();
        while since.elapsed() < SPIN {
            for _ in 0..SPINS_PER_LOOK {
                if !idle(self.gate.0.load(Ordering::Relaxed)) {
                    return;
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
        }
        parked.store(true, Ordering::SeqCst);
        while parked.load(Ordering::SeqCst)
            && idle(self.gate.0.load(Ordering::SeqCst))
            && !self.stop.load(Ordering::SeqCst)
        {
            thread::park();
        }
        parked.store(false, Ordering::SeqCst);
    }

    /// The chunks that `thread` runs first.
    fn share(&self, thread: usize, chunks: usize) -> Range<usize> {
        let (each, left) = (chunks / self.next.len(), chunks % self.next.len());
        let start = thread * each + thread.min(left);
        start..start + each + usize::from(thread < left)
    }

    /// Claims and runs chunks of the present region until none is left, `thread`'s own share first, keeping the
    /// first panic.
    fn work(&self, thread: usize) {
        // SAFETY: the caller of `run` wrote it before it opened the gate; a worker joined through the gate.
        let Some(region) = (unsafe { *self.region.get() }) else { return };
        // SAFETY: the closure outlives `Pool::run`, which returns only after everyone who joined has left.
        let task = unsafe { &*region.task };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let threads = self.next.len();
            for owner in (thread..threads).chain(0..thread) {
                let end = self.share(owner, region.chunks).end;
                loop {
                    let chunk = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                    if chunk >= end {
                        break;
                    }
                    let start = chunk * region.grain;
                    task(start..region.items.min(start.saturating_add(region.grain)));
                }
            }
        }));
        if let Err(payload) = outcome {
            // Nobody starts another chunk of a region that has failed.
            for next in &self.next {
                next.0.store(region.chunks, Ordering::Relaxed);
            }
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }
}

/// Forgets how long the closure lives; `Pool::run` keeps it alive while the pointer is in use.
fn erase_lifetime<'a>(task: &'a (dyn Fn(Range<usize>) + Sync + 'a)) -> *const (dyn Fn(Range<usize>) + Sync) {
    let task: *const (dyn Fn(Range<usize>) + Sync + 'a) = task;
    // SAFETY: the two fat pointer types differ in the lifetime bound only.
    unsafe { std::mem::transmute(task) }
}
