//! One worker's life as an explicit state machine (pure: events and time in, actions out). Driven by `fleet::keeper`.
//!
//! ```text
//! Starting → Loading → Ready → Draining → Stopped
//!     └─────────┴────────┴──→ Crashed → Backoff → Starting
//!                                └────→ Failed ──→ Starting (slowly; never where the cause is permanent)
//! ```
//! A worker is *managed* (its process is ours: started, signalled, reaped) or *attached* (a service manager runs it: we
//! connect, and a life is one connection). An attached worker is never terminated; it is killed only when it hangs,
//! which leaves its service manager to start it again.
//!
//! What holds always: a process is started only after the one before was reaped; `Ready` comes only after a handshake
//! of our version and the worker's own `Ready`; waits between restarts grow with crashes in a row and are capped; a
//! worker that was told to drain ends in `Stopped` and is not started again; one that was told to restart comes back
//! at once, and its requests are innocent. It does not know about sockets, requests or clocks.

use super::SupervisorTiming;
use super::exit::ExitKind;
pub use super::life::WorkerState;
pub(crate) use super::life::{Action, Blame, Event, Loss, Tenure};
use shared::ipc::PROTOCOL_VERSION;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// The share of a wait that chance may take away, so that workers that crash together do not start together.
const JITTER_SHARE: f64 = 0.5;
/// Doublings after which the wait is at its cap whatever its first length; keeps the shift in range.
const DOUBLINGS_MAX: u32 = 20;
/// How often an attached worker of another version is looked at for having been exchanged.
const EXCHANGE_LOOK: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting { until: Instant },
    Loading { until: Instant },
    Ready { since: Instant },
    Draining { until: Option<Instant>, stage: Stage, after: After },
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

/// What follows a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Stop,
    Restart,
}

/// One worker's state. Feed it with [`Machine::on`].
#[derive(Debug)]
pub(crate) struct Machine {
    tenure: Tenure,
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
    /// Of these: because not even its process answered.
    silent: bool,
    was_ready: bool,
    useful: bool,
}

impl Machine {
    /// A worker whose first start is due at once. `seed` sets its jitter.
    pub(crate) fn new(tenure: Tenure, timing: SupervisorTiming, seed: u64, now: Instant) -> Self {
        Self {
            tenure,
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
            (Phase::Draining { after, .. }, Event::Spawned) => self.terminate(after, now),
            (Phase::Crashed { .. }, Event::Spawned) => vec![Action::Kill],
            (Phase::Starting { .. }, Event::Hello(PROTOCOL_VERSION)) => {
                self.phase = Phase::Loading { until: now + self.timing.load_silence };
                Vec::new()
            }
            (Phase::Starting { .. }, Event::Hello(version)) => {
                self.life.permanent = true;
                let cause = format!("worker speaks protocol version {version}, gateway {PROTOCOL_VERSION}");
                self.give_up(cause, now)
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
            (phase, Event::Restart(grace)) => self.restart(phase, grace, now),
            (Phase::Draining { stage: Stage::Finishing, after, .. }, Event::Idle) => {
                self.end_life(after, now)
            }
            (phase, Event::Tick) => self.tick(phase, now),
            _ => Vec::new(),
        }
    }

    fn start(&mut self, now: Instant) -> Vec<Action> {
        self.life = Life::default();
        self.phase = Phase::Starting { until: now + self.timing.handshake };
        match self.tenure {
            Tenure::Managed => vec![Action::Spawn],
            Tenure::Attached => vec![Action::Connect],
        }
    }

    /// Gives the worker up. A process of ours is killed at once; an attached one may be right where we are wrong, so
    /// that only the connection ends.
    fn give_up(&mut self, cause: String, now: Instant) -> Vec<Action> {
        self.life.cause = Some(cause);
        match self.tenure {
            Tenure::Managed => {
                self.life.killed = true;
                self.phase = Phase::Crashed { kill_at: None };
                vec![Action::Disconnect, Action::Kill]
            }
            Tenure::Attached => self.connection_over(Blame::Suspect, now),
        }
    }

    /// Gives up a worker that will not end by itself.
    fn hung(&mut self, reason: String, blame: Blame, now: Instant) -> Vec<Action> {
        match self.tenure {
            Tenure::Managed => {
                self.life.silent = blame == Blame::Innocent;
                self.give_up(reason, now)
            }
            Tenure::Attached => {
                self.life.cause = Some(reason);
                // While the connection is open the process id is still its own.
                let mut actions = vec![Action::Kill];
                actions.extend(self.connection_over(blame, now));
                actions
            }
        }
    }

    /// The life of an attached worker ends with its connection.
    fn connection_over(&mut self, blame: Blame, now: Instant) -> Vec<Action> {
        self.phase = if self.life.permanent {
            // It may be exchanged for one of our version at any time.
            Phase::Failed { retry_at: Some(now + self.timing.failed_retry.min(EXCHANGE_LOOK)) }
        } else {
            if self.life.was_ready {
                self.streak = 0;
            }
            Phase::Backoff { until: now + self.next_wait() }
        };
        vec![Action::Disconnect, Action::Release(blame)]
    }

    /// Ends what was drained.
    fn end_life(&mut self, after: After, now: Instant) -> Vec<Action> {
        match self.tenure {
            Tenure::Managed => self.terminate(after, now),
            Tenure::Attached => {
                self.phase = self.phase_after(after, now);
                vec![Action::Disconnect, Action::Release(Blame::Innocent)]
            }
        }
    }

    fn phase_after(&self, after: After, now: Instant) -> Phase {
        match after {
            After::Stop => Phase::Stopped,
            After::Restart => Phase::Backoff { until: now },
        }
    }

    fn terminate(&mut self, after: After, now: Instant) -> Vec<Action> {
        let until = Some(now + self.timing.terminate_grace);
        self.phase = Phase::Draining { until, stage: Stage::Terminated, after };
        vec![Action::Terminate]
    }

    fn lost(&mut self, phase: Phase, loss: Loss, now: Instant) -> Vec<Action> {
        match phase {
            Phase::Starting { .. } | Phase::Loading { .. } | Phase::Ready { .. } => {}
            Phase::Draining { stage: Stage::Finishing, after, .. } => return self.end_life(after, now),
            _ => return Vec::new(),
        }
        match (self.tenure, loss) {
            (_, Loss::Protocol(reason)) => self.give_up(format!("protocol error: {reason}"), now),
            (_, Loss::Busy(pid)) => self.give_up(busy(pid), now),
            (Tenure::Attached, Loss::Left) => {
                self.life.cause = Some("worker was told to end".to_owned());
                self.connection_over(Blame::Innocent, now)
            }
            (_, Loss::Hung(reason)) => self.hung(reason, Blame::Suspect, now),
            (_, Loss::Silent(reason)) => self.hung(reason, Blame::Innocent, now),
            (tenure, loss @ (Loss::Closed | Loss::Left | Loss::Fatal(_))) => {
                if let Loss::Fatal(reason) = loss {
                    self.life.cause = Some(reason);
                }
                match tenure {
                    Tenure::Managed => {
                        self.phase = Phase::Crashed { kill_at: Some(now + self.timing.exit_grace) };
                        vec![Action::Disconnect]
                    }
                    Tenure::Attached => {
                        self.life.cause.get_or_insert_with(|| "connection lost".to_owned());
                        self.connection_over(Blame::Suspect, now)
                    }
                }
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
            Phase::Draining { after, .. } => {
                self.phase = self.phase_after(after, now);
                vec![Action::Disconnect, Action::Release(Blame::Innocent)]
            }
            Phase::Stopped | Phase::Backoff { .. } | Phase::Failed { .. } => Vec::new(),
        }
    }

    /// No process is left: decides when there will be one again.
    fn after_crash(&mut self, exit: Option<ExitKind>, now: Instant) -> Vec<Action> {
        let from_outside = !self.life.killed && exit.is_some_and(ExitKind::is_from_outside);
        let blame = if from_outside || self.life.silent { Blame::Innocent } else { Blame::Suspect };
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
        let longest = match self.tenure {
            Tenure::Managed => self.timing.backoff_max,
            Tenure::Attached => self.timing.reconnect_max,
        };
        let nominal = self.timing.backoff_first.saturating_mul(1 << doublings).min(longest);
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
            Phase::Ready { .. } => self.finish(After::Stop, grace, now),
            Phase::Starting { .. } | Phase::Loading { .. } => self.interrupt(After::Stop, now),
            Phase::Crashed { .. } => {
                self.phase = Phase::Draining { until: None, stage: Stage::Killed, after: After::Stop };
                vec![Action::Kill]
            }
            Phase::Backoff { .. } | Phase::Failed { .. } => {
                self.phase = Phase::Stopped;
                Vec::new()
            }
            // A restart under way becomes an end.
            Phase::Draining { until, stage, .. } => {
                let until = match stage {
                    Stage::Finishing => until.map(|until| until.min(now + grace)),
                    Stage::Terminated | Stage::Killed => until,
                };
                self.phase = Phase::Draining { until, stage, after: After::Stop };
                Vec::new()
            }
            Phase::Stopped => Vec::new(),
        }
    }

    /// An operator wants a fresh process. One that waits for its next start is started now, whatever it failed of.
    fn restart(&mut self, phase: Phase, grace: Duration, now: Instant) -> Vec<Action> {
        match phase {
            Phase::Ready { .. } => self.finish(After::Restart, grace, now),
            Phase::Starting { .. } | Phase::Loading { .. } => self.interrupt(After::Restart, now),
            Phase::Backoff { .. } | Phase::Failed { .. } => {
                self.streak = 0;
                self.crashes.clear();
                self.on_trial = false;
                self.start(now)
            }
            Phase::Crashed { .. } | Phase::Draining { .. } | Phase::Stopped => Vec::new(),
        }
    }

    /// Lets a serving worker finish what it has.
    fn finish(&mut self, after: After, grace: Duration, now: Instant) -> Vec<Action> {
        self.phase = Phase::Draining { until: Some(now + grace), stage: Stage::Finishing, after };
        match self.tenure {
            Tenure::Managed => vec![Action::SendDrain],
            // It goes on serving, only not us.
            Tenure::Attached => Vec::new(),
        }
    }

    /// Ends a worker that has nothing to finish yet.
    fn interrupt(&mut self, after: After, now: Instant) -> Vec<Action> {
        let mut actions = vec![Action::Disconnect];
        actions.extend(self.end_life(after, now));
        actions
    }

    fn tick(&mut self, phase: Phase, now: Instant) -> Vec<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        match phase {
            Phase::Starting { .. } => {
                self.give_up(format!("no handshake within {:?}", self.timing.handshake), now)
            }
            Phase::Loading { .. } => {
                self.give_up(format!("no progress for {:?} while loading", self.timing.load_silence), now)
            }
            Phase::Crashed { .. } => {
                self.life.killed = true;
                self.life
                    .cause
                    .get_or_insert_with(|| "worker closed its connection and did not exit".to_owned());
                self.phase = Phase::Crashed { kill_at: None };
                vec![Action::Kill]
            }
            Phase::Draining { stage: Stage::Finishing, after, .. } => self.end_life(after, now),
            Phase::Draining { after, .. } => {
                self.phase = Phase::Draining { until: None, stage: Stage::Killed, after };
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

fn busy(owner_pid: Option<u32>) -> String {
    match owner_pid {
        Some(pid) => format!("worker serves another gateway, process {pid}"),
        None => "worker serves another gateway".to_owned(),
    }
}

#[cfg(test)]
mod tests;
