//! The words in which `machine` is told what happened to a worker and says what to do: its states, events and actions.
//! Read by `fleet::keeper`, which translates both ways.

use super::exit::ExitKind;
use std::io::ErrorKind;
use std::time::Duration;

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkerState {
    /// A process was started; its handshake is awaited.
    Starting,
    /// The model loads.
    Loading,
    /// Requests are served.
    Ready,
    /// What runs is finished, nothing new is taken; then the process ends.
    Draining,
    /// Ended on demand; stays so.
    Stopped,
    /// Given up; its process is awaited or killed.
    Crashed,
    /// No process; the next start waits.
    Backoff,
    /// The circuit is open: tried again rarely, or never where the cause is permanent.
    Failed,
}

impl WorkerState {
    /// Every state, for gauges with one label value each.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Loading,
        Self::Ready,
        Self::Draining,
        Self::Stopped,
        Self::Crashed,
        Self::Backoff,
        Self::Failed,
    ];

    /// The word used in `/health` and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
        }
    }
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The process runs.
    Spawned,
    /// There is no process; the text names program and reason.
    SpawnFailed(String, ErrorKind),
    /// The worker answered the handshake with this protocol version.
    Hello(u32),
    /// Loading went on.
    Progress,
    /// The model is loaded.
    ModelReady,
    /// The worker emitted its first token.
    Useful,
    /// The worker is not to be trusted any more.
    Lost(Loss),
    /// The process was reaped.
    Exited(ExitKind),
    /// Take nothing new, finish within the time, end.
    Drain(Duration),
    /// Take nothing new, finish within the time, end, and start again at once.
    Restart(Duration),
    /// No request is left in the worker.
    Idle,
    /// Time passed.
    Tick,
}

/// Why a running worker is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection ended; most likely the process is ending too, and its status will tell why.
    Closed,
    /// The worker said that it cannot go on, and exits.
    Fatal(String),
    /// It broke the protocol.
    Protocol(String),
    /// Its engine makes no progress, in the watchdog's words.
    Hung(String),
    /// Not even its process answers, in the watchdog's words: it was stopped, frozen or swapped out, which no request
    /// does by itself. A computation that never ends occupies the engine's thread alone.
    Silent(String),
    /// It was told to end, by a signal or its service manager, and said so; its requests have nothing to do with it.
    Left,
    /// It serves another gateway, of this process id where that is known.
    Busy(Option<u32>),
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the process and answer with `Spawned` or `SpawnFailed`.
    Spawn,
    /// Connect to the socket: to that of a process of ours until it is there, to another's once.
    Connect,
    /// Drop the connection.
    Disconnect,
    /// Route requests to it.
    Serve,
    /// Ask the worker to take nothing new.
    SendDrain,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    /// Give the requests it held to others.
    Release(Blame),
}

/// Whether the requests a dead worker held may have killed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// They may.
    Suspect,
    /// It was ended from outside or on demand.
    Innocent,
}

/// Whose the worker's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tenure {
    /// Ours.
    Managed,
    /// A service manager's.
    Attached,
}
