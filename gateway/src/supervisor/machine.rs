//! One worker's life as an explicit state machine (pure: events and time in, actions out). Driven by `fleet::keeper`.
//!
//! ```text
//! Starting → Loading → Ready → Draining → Stopped
//!     └─────────┴────────┴──→ Crashed → Backoff → Starting
//!                                └────→ Failed ──→ Starting (slowly; never where the cause is permanent)
//! ```
//! What holds always: a process is started only after the one before was reaped; `Ready` comes only after a handshake
//! of our version and the worker's own `Ready`; waits between restarts grow with crashes in a row and are capped; a
//! worker that was told to drain ends in `Stopped` and is not started again. It does not know about sockets, requests
//! or clocks.

use super::SupervisorTiming;
use super::exit::ExitKind;
use shared::ipc::PROTOCOL_VERSION;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

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
    /// It makes no progress.
    Hung,
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the process and answer with `Spawned` or `SpawnFailed`.
    Spawn,
    /// Connect to the socket, trying until it is there.
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

/// The share of a wait that chance may take away, so that workers that crash together do not start together.
const JITTER_SHARE: f64 = 0.5;
/// Doublings after which the wait is at its cap whatever its first length; keeps the shift in range.
const DOUBLINGS_MAX: u32 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting { until: Instant },
    Loading { until: Instant },
    Ready { since: Instant },
    Draining { until: Option<Instant>, stage: Stage },
    Stopped,
    Crashed { kill_at: Option<Instant> },
    Backoff { until: Instant },
    Failed { retry_at: Option<Instant> },
}

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Finishing,
    Terminated,
    Killed,
}

/// One worker's state. Feed it with [`Machine::on`].
#[derive(Debug)]
pub(crate) struct Machine {
    timing: SupervisorTiming,
    phase: Phase,
    life: Life,
    /// Crashes in a row without useful work between: the exponent of the wait.
    streak: u32,
    /// Crashes that count for the circuit, oldest first.
    crashes: VecDeque<Instant>,
    /// The worker was tried again with an open circuit: one more crash opens it at once.
    on_trial: bool,
    jitter_state: u64,
}

/// What is known of the process that runs now or ran last.
#[derive(Debug, Default)]
struct Life {
    /// Why it was given up.
    cause: Option<String>,
    /// Starting it again cannot help.
    permanent: bool,
    /// SIGKILL was ours.
    killed: bool,
    was_ready: bool,
    useful: bool,
}

impl Machine {
    /// A worker whose first start is due at once. `seed` sets its jitter.
    pub(crate) fn new(timing: SupervisorTiming, seed: u64, now: Instant) -> Self {
        Self {
            timing,
            phase: Phase::Backoff { until: now },
            life: Life::default(),
            streak: 0,
            crashes: VecDeque::new(),
            on_trial: false,
            jitter_state: seed,
        }
    }

    /// Where the worker stands.
    pub(crate) fn state(&self) -> WorkerState {
        match self.phase {
            Phase::Starting { .. } => WorkerState::Starting,
            Phase::Loading { .. } => WorkerState::Loading,
            Phase::Ready { .. } => WorkerState::Ready,
            Phase::Draining { .. } => WorkerState::Draining,
            Phase::Stopped => WorkerState::Stopped,
            Phase::Crashed { .. } => WorkerState::Crashed,
            Phase::Backoff { .. } => WorkerState::Backoff,
            Phase::Failed { .. } => WorkerState::Failed,
        }
    }

    /// Why the present or last process was given up, where it did not just end.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.life.cause.as_deref()
    }

    /// Whether the worker has failed and is not tried again.
    pub(crate) fn is_failed_for_good(&self) -> bool {
        self.phase == Phase::Failed { retry_at: None }
    }

    /// When to send [`Event::Tick`] at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting { until } | Phase::Loading { until } | Phase::Backoff { until } => Some(until),
            Phase::Draining { until, .. } => until,
            Phase::Crashed { kill_at } => kill_at,
            Phase::Failed { retry_at } => retry_at,
            Phase::Ready { .. } | Phase::Stopped => None,
        }
    }

    /// Takes one event at `now`. Events that mean nothing in the present state change nothing.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match (self.phase, event) {
            (Phase::Starting { .. }, Event::Spawned) => {
                self.phase = Phase::Starting { until: now + self.timing.handshake };
                vec![Action::Connect]
            }
            (Phase::Starting { .. } | Phase::Crashed { .. }, Event::SpawnFailed(reason, kind)) => {
                self.life.cause = Some(reason);
                self.life.permanent = matches!(kind, ErrorKind::NotFound | ErrorKind::PermissionDenied);
                self.after_crash(None, now)
            }
            (Phase::Draining { .. }, Event::SpawnFailed(..)) => {
                self.phase = Phase::Stopped;
                Vec::new()
            }
            // The order to end came while the process was being made, and must be given again.
            (Phase::Draining { .. }, Event::Spawned) => self.terminate(now),
            (Phase::Crashed { .. }, Event::Spawned) => vec![Action::Kill],
            (Phase::Starting { .. }, Event::Hello(PROTOCOL_VERSION)) => {
                self.phase = Phase::Loading { until: now + self.timing.load_silence };
                Vec::new()
            }
            (Phase::Starting { .. }, Event::Hello(version)) => {
                self.life.permanent = true;
                self.kill(format!("worker speaks protocol version {version}, gateway {PROTOCOL_VERSION}"))
            }
            (phase @ Phase::Starting { .. }, Event::Progress | Event::ModelReady) => {
                self.lost(phase, Loss::Protocol("worker speaks before its handshake".to_owned()), now)
            }
            (Phase::Loading { .. }, Event::Progress) => {
                self.phase = Phase::Loading { until: now + self.timing.load_silence };
                Vec::new()
            }
            (Phase::Loading { .. }, Event::ModelReady) => {
                self.phase = Phase::Ready { since: now };
                self.life.was_ready = true;
                vec![Action::Serve]
            }
            (_, Event::Useful) => {
                self.life.useful = true;
                Vec::new()
            }
            (phase, Event::Lost(loss)) => self.lost(phase, loss, now),
            (phase, Event::Exited(exit)) => self.exited(phase, exit, now),
            (phase, Event::Drain(grace)) => self.drain(phase, grace, now),
            (Phase::Draining { stage: Stage::Finishing, .. }, Event::Idle) => self.terminate(now),
            (phase, Event::Tick) => self.tick(phase, now),
            _ => Vec::new(),
        }
    }

    fn start(&mut self, now: Instant) -> Vec<Action> {
        self.life = Life::default();
        self.phase = Phase::Starting { until: now + self.timing.handshake };
        vec![Action::Spawn]
    }

    /// Gives the worker up and kills it at once.
    fn kill(&mut self, cause: String) -> Vec<Action> {
        self.life.cause = Some(cause);
        self.life.killed = true;
        self.phase = Phase::Crashed { kill_at: None };
        vec![Action::Disconnect, Action::Kill]
    }

    fn terminate(&mut self, now: Instant) -> Vec<Action> {
        self.phase =
            Phase::Draining { until: Some(now + self.timing.terminate_grace), stage: Stage::Terminated };
        vec![Action::Terminate]
    }

    fn lost(&mut self, phase: Phase, loss: Loss, now: Instant) -> Vec<Action> {
        match phase {
            Phase::Starting { .. } | Phase::Loading { .. } | Phase::Ready { .. } => {}
            Phase::Draining { stage: Stage::Finishing, .. } => return self.terminate(now),
            _ => return Vec::new(),
        }
        match loss {
            Loss::Protocol(reason) => self.kill(format!("protocol error: {reason}")),
            Loss::Hung => self.kill(format!("no progress for {:?} with requests running", self.timing.hang)),
            Loss::Closed | Loss::Fatal(_) => {
                if let Loss::Fatal(reason) = loss {
                    self.life.cause = Some(reason);
                }
                self.phase = Phase::Crashed { kill_at: Some(now + self.timing.exit_grace) };
                vec![Action::Disconnect]
            }
        }
    }

    fn exited(&mut self, phase: Phase, exit: ExitKind, now: Instant) -> Vec<Action> {
        match phase {
            Phase::Starting { .. } | Phase::Loading { .. } | Phase::Ready { .. } | Phase::Crashed { .. } => {
                if let Phase::Ready { since } = phase {
                    // A long quiet service is as good a sign as a token.
                    self.life.useful |= now.saturating_duration_since(since) >= self.timing.crash_window;
                }
                let mut actions = vec![Action::Disconnect];
                actions.extend(self.after_crash(Some(exit), now));
                actions
            }
            Phase::Draining { .. } => {
                self.phase = Phase::Stopped;
                vec![Action::Disconnect, Action::Release(Blame::Innocent)]
            }
            Phase::Stopped | Phase::Backoff { .. } | Phase::Failed { .. } => Vec::new(),
        }
    }

    /// No process is left: decides when there will be one again.
    fn after_crash(&mut self, exit: Option<ExitKind>, now: Instant) -> Vec<Action> {
        let from_outside = !self.life.killed && exit.is_some_and(ExitKind::is_from_outside);
        let blame = if from_outside { Blame::Innocent } else { Blame::Suspect };
        let permanent =
            self.life.permanent || (!self.life.killed && exit.is_some_and(ExitKind::is_permanent));
        // Work done, or a kill that says nothing about the worker, does not count for the circuit.
        let counts = !(self.life.useful || from_outside && self.life.was_ready);
        if counts {
            self.crashes.push_back(now);
        }
        if self.life.useful {
            self.streak = 0;
            self.crashes.clear();
            self.on_trial = false;
        }
        while self
            .crashes
            .front()
            .is_some_and(|first| now.saturating_duration_since(*first) > self.timing.crash_window)
        {
            self.crashes.pop_front();
        }
        self.phase = if permanent {
            Phase::Failed { retry_at: None }
        } else if counts && (self.on_trial || self.crashes.len() >= self.timing.crashes_max) {
            Phase::Failed { retry_at: Some(now + self.timing.failed_retry) }
        } else {
            Phase::Backoff { until: now + self.next_wait() }
        };
        vec![Action::Release(blame)]
    }

    /// The next wait before a restart: nominally `first · 2^streak` up to the cap, less jitter.
    fn next_wait(&mut self) -> Duration {
        let doublings = self.streak.min(DOUBLINGS_MAX);
        self.streak = self.streak.saturating_add(1);
        let nominal = self.timing.backoff_first.saturating_mul(1 << doublings).min(self.timing.backoff_max);
        nominal.mul_f64(1.0 - JITTER_SHARE * self.next_unit())
    }

    /// A number in 0..1 (SplitMix64, Steele et al. 2014).
    fn next_unit(&mut self) -> f64 {
        self.jitter_state = self.jitter_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.jitter_state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn drain(&mut self, phase: Phase, grace: Duration, now: Instant) -> Vec<Action> {
        match phase {
            Phase::Ready { .. } => {
                self.phase = Phase::Draining { until: Some(now + grace), stage: Stage::Finishing };
                vec![Action::SendDrain]
            }
            Phase::Starting { .. } | Phase::Loading { .. } => {
                let mut actions = vec![Action::Disconnect];
                actions.extend(self.terminate(now));
                actions
            }
            Phase::Crashed { .. } => {
                self.phase = Phase::Draining { until: None, stage: Stage::Killed };
                vec![Action::Kill]
            }
            Phase::Backoff { .. } | Phase::Failed { .. } => {
                self.phase = Phase::Stopped;
                Vec::new()
            }
            Phase::Draining { .. } | Phase::Stopped => Vec::new(),
        }
    }

    fn tick(&mut self, phase: Phase, now: Instant) -> Vec<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match phase {
            Phase::Starting { .. } => self.kill(format!("no handshake within {:?}", self.timing.handshake)),
            Phase::Loading { .. } => {
                self.kill(format!("no progress for {:?} while loading", self.timing.load_silence))
            }
            Phase::Crashed { .. } => {
                self.life.killed = true;
                self.life
                    .cause
                    .get_or_insert_with(|| "worker closed its connection and did not exit".to_owned());
                self.phase = Phase::Crashed { kill_at: None };
                vec![Action::Kill]
            }
            Phase::Draining { stage: Stage::Finishing, .. } => self.terminate(now),
            Phase::Draining { .. } => {
                self.phase = Phase::Draining { until: None, stage: Stage::Killed };
                vec![Action::Disconnect, Action::Kill]
            }
            Phase::Backoff { .. } => self.start(now),
            Phase::Failed { .. } => {
                self.on_trial = true;
                self.start(now)
            }
            Phase::Ready { .. } | Phase::Stopped => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
