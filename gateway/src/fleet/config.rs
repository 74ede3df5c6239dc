//! What a fleet needs to know before it starts. The parts and their defaults stand beside what they configure.

use super::run_dir::private_run_dir;
use crate::admission::QueueLimits;
use crate::supervisor::{SupervisorTiming, WorkerConfig};
use std::path::PathBuf;

/// Everything a fleet is started with.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// One entry per worker process that the fleet starts; the position is the worker's id.
    pub workers: Vec<WorkerConfig>,
    /// Sockets of workers that somebody else runs; their ids follow.
    pub attached: Vec<PathBuf>,
    /// Size of the vocabulary that an attached worker's model must have, where known.
    pub vocab_size: Option<u32>,
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
            attached: Vec::new(),
            vocab_size: None,
            run_dir: private_run_dir(|name| std::env::var_os(name)),
            timing: SupervisorTiming::default(),
            queue: QueueLimits::default(),
        }
    }
}
