//! What a fleet needs to know before it starts. The parts and their defaults stand beside what they configure.

use crate::admission::QueueLimits;
use crate::supervisor::{SupervisorTiming, WorkerConfig};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Everything a fleet is started with.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// One entry per worker process; the position is the worker's id.
    pub workers: Vec<WorkerConfig>,
    /// Directory for the sockets. Made with mode 0700 at start and removed at shutdown; see [`private_run_dir`].
    pub run_dir: PathBuf,
    /// When workers are given up, restarted and killed.
    pub timing: SupervisorTiming,
    /// What the gateway holds for requests.
    pub queue: QueueLimits,
}

impl FleetConfig {
    /// A fleet of `workers` with every other setting at its default.
    pub fn new(workers: Vec<WorkerConfig>) -> Self {
        Self {
            workers,
            run_dir: private_run_dir(|name| std::env::var_os(name)),
            timing: SupervisorTiming::default(),
            queue: QueueLimits::default(),
        }
    }
}

/// A directory name no other fleet uses: under `XDG_RUNTIME_DIR`, else the temporary directory. Nothing is created.
pub fn private_run_dir(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    /// Tells several fleets of one process apart (tests).
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = match variable("XDG_RUNTIME_DIR") {
        Some(path) if Path::new(&path).is_dir() => PathBuf::from(path),
        _ => std::env::temp_dir(),
    };
    let sequence = NEXT.fetch_add(1, Ordering::Relaxed);
    base.join(format!("rocmforge-{}-{sequence}", std::process::id()))
}
