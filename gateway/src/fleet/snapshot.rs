//! The fleet at one instant, for `/health`, `/ready`, `/metrics` and the progress bar.

use crate::supervisor::exit::LastExit;
pub(super) use crate::supervisor::machine::WorkerState;
use shared::ids::WorkerId;
use shared::ipc::message::{DeviceInfo, EngineStats, ModelInfo, WorkerLimits};

/// Every worker, and what waits for one.
#[derive(Debug, Clone)]
pub struct FleetSnapshot {
    /// In order of their ids.
    pub workers: Vec<WorkerSnapshot>,
    /// Requests waiting in the gateway for a place in a worker.
    pub waiting_requests: usize,
    /// Their tokens (prompt and largest output).
    pub waiting_tokens: u64,
    /// Whether new requests are refused because the gateway shuts down.
    pub draining: bool,
    /// Whether new requests are refused because too many wait.
    pub queue_full: bool,
}

impl FleetSnapshot {
    /// Why a request sent now would not be served, or `None` if it would.
    pub fn unready_reason(&self) -> Option<String> {
        if self.draining {
            return Some("shutting down".to_owned());
        }
        if !self.workers.iter().any(|worker| worker.state == WorkerState::Ready) {
            let reasons: Vec<String> = self.workers.iter().map(WorkerSnapshot::describe).collect();
            return Some(if reasons.is_empty() {
                "no worker configured".to_owned()
            } else {
                reasons.join("; ")
            });
        }
        self.queue_full.then(|| format!("overloaded: {} requests are waiting", self.waiting_requests))
    }

    /// How the first worker ended, if every worker has failed and none is tried again: the gateway is of no use then.
    pub fn permanent_failure(&self) -> Option<&LastExit> {
        let lost = |worker: &WorkerSnapshot| {
            worker.state == WorkerState::Failed
                && worker.last_exit.as_ref().is_some_and(|exit| exit.permanent)
        };
        if !self.workers.iter().all(lost) {
            return None;
        }
        self.workers.first()?.last_exit.as_ref()
    }

    /// The model the fleet serves, once a worker has loaded it.
    pub fn model(&self) -> Option<&ModelInfo> {
        self.workers.iter().find_map(|worker| worker.model.as_ref())
    }

    /// The limits of the worker that can hold the longest sequence, once known.
    pub fn limits(&self) -> Option<&WorkerLimits> {
        self.workers
            .iter()
            .filter_map(|worker| worker.limits.as_ref())
            .max_by_key(|limits| limits.context_tokens)
    }
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of tensors ready.
    pub done_bytes: u64,
    /// Bytes of tensors in the file.
    pub total_bytes: u64,
}

/// One worker.
#[derive(Debug, Clone)]
pub struct WorkerSnapshot {
    /// Its position in the configuration.
    pub id: WorkerId,
    /// Process id while there is a process.
    pub pid: Option<u32>,
    /// What it computes on, as last told.
    pub device: Option<DeviceInfo>,
    /// Where it stands.
    pub state: WorkerState,
    /// Times it was started again.
    pub restarts: u32,
    /// How its last process ended.
    pub last_exit: Option<LastExit>,
    /// While it loads.
    pub loading: Option<LoadProgress>,
    /// What it has loaded, as last told; kept over a restart.
    pub model: Option<ModelInfo>,
    /// What it can hold, as last told; kept over a restart.
    pub limits: Option<WorkerLimits>,
    /// Its engine, as last told.
    pub stats: EngineStats,
    /// Requests it holds.
    pub in_flight_requests: usize,
    /// Tokens they may still cost: prompts not yet answered and output not yet made.
    pub in_flight_tokens: u64,
}

impl WorkerSnapshot {
    /// One line for people: state, progress, last failure.
    pub fn describe(&self) -> String {
        let mut line = format!("worker {} is {}", self.id, self.state);
        if let Some(progress) = self.loading.filter(|progress| progress.total_bytes > 0) {
            let percent =
                progress.done_bytes.min(progress.total_bytes) as f64 / progress.total_bytes as f64 * 100.0;
            line.push_str(&format!(" ({percent:.0} %)"));
        }
        let troubled =
            matches!(self.state, WorkerState::Crashed | WorkerState::Backoff | WorkerState::Failed);
        if let (true, Some(exit)) = (troubled, &self.last_exit) {
            line.push_str(": ");
            line.push_str(&exit.reason());
        }
        line
    }
}
