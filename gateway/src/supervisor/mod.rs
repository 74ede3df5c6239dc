//! Keeps one worker process per configured device alive, or the connection to one that a service manager runs: decides in `machine` and `watchdog` (pure: events and time
//! in, actions out), acts in `process`. The loop that joins them with a connection and the requests in flight is
//! `fleet::keeper`.
//!
//! A worker runs in its own process group, so that Ctrl-C in a terminal reaches the gateway alone, which then drains
//! before it ends the workers. It dies with the gateway all the same: it asks the kernel for a signal at its parent's
//! death, and `process` spawns from a thread that lives as long as the fleet, since that signal follows the thread.

pub(crate) mod exit;
pub(crate) mod life;
pub(crate) mod machine;
pub(crate) mod pinning;
pub(crate) mod process;
pub(crate) mod watchdog;
mod worker_log;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How one worker is run: `program serve --socket PATH --parent-pid PID args…`.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The worker's executable.
    pub program: PathBuf,
    /// Arguments after those the supervisor gives.
    pub args: Vec<OsString>,
    /// Added to the gateway's own environment (device pinning, thread counts).
    pub env: Vec<(OsString, OsString)>,
}

/// The supervisor's deadlines and waits, the same for every worker.
#[derive(Debug, Clone, Copy)]
pub struct SupervisorTiming {
    /// From spawn to the worker's `Hello`. A worker binds its socket before it looks at the model.
    pub handshake: Duration,
    /// Longest silence between two signs of progress while the model loads.
    pub load_silence: Duration,
    /// Longest time without any answer of the process, and without progress of an engine that has loaded its model.
    pub hang: Duration,
    /// How often a worker is pinged.
    pub ping_interval: Duration,
    /// Wait before the first restart; doubles with each crash in a row.
    pub backoff_first: Duration,
    /// Longest wait between restarts.
    pub backoff_max: Duration,
    /// Longest wait between two tries to connect to an attached worker; a try costs next to nothing.
    pub reconnect_max: Duration,
    /// Crashes within [`Self::crash_window`] that open the circuit.
    pub crashes_max: usize,
    /// How long a crash is remembered.
    pub crash_window: Duration,
    /// Wait before a worker whose circuit is open is tried again.
    pub failed_retry: Duration,
    /// How long a process whose connection broke may take to exit by itself, so that its status tells why.
    pub exit_grace: Duration,
    /// From SIGTERM to SIGKILL.
    pub terminate_grace: Duration,
}

impl Default for SupervisorTiming {
    /// Values for workers that load multi-gigabyte models; tests shorten them.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(20),
            load_silence: Duration::from_secs(300),
            hang: Duration::from_secs(30),
            ping_interval: Duration::from_secs(1),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            reconnect_max: Duration::from_secs(1),
            crashes_max: 5,
            crash_window: Duration::from_secs(120),
            failed_retry: Duration::from_secs(60),
            exit_grace: Duration::from_millis(500),
            terminate_grace: Duration::from_secs(5),
        }
    }
}
