//! Keeps one worker alive: the loop that feeds its state machine with what happens and does what the machine says.
//! One task per worker, started and joined by [`super::Fleet`].
//!
//! A life of a managed worker is one process, one of an attached worker is one connection that got its handshake.

use super::core::{Arrival, Core};
use super::snapshot::{LoadProgress, WorkerState};
use crate::supervisor::exit::LastExit;
use crate::supervisor::machine::{Action, Blame, Event, Loss, Machine, Tenure};
use crate::supervisor::process::{Spawner, WorkerProcess};
use crate::supervisor::watchdog::{Engine, Verdict, Vitals, Watchdog};
use crate::supervisor::{SupervisorTiming, WorkerConfig};
use crate::worker_client::{self, OUTBOUND_MESSAGES_MAX, Patience, Report, Sink};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared::ids::WorkerId;
use shared::ipc::message::{ModelInfo, ToWorker, WorkerLimits};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Reports of a worker's life that may wait for its keeper.
const REPORTS_MAX: usize = 64;
/// How long what a dead worker sent last is waited for.
const LAST_REPORTS: Duration = Duration::from_millis(100);
/// How often a draining worker is looked at for being done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// What a worker is told by an operator or by the fleet's end. The time is how long it may finish what it has.
#[derive(Debug)]
pub(super) enum Order {
    /// Take nothing new, and end.
    Drain(Duration),
    /// The same, and start again.
    Restart(Duration),
}

/// Whose process the worker is.
pub(super) enum Origin {
    /// Ours, to be run like this.
    Managed { config: WorkerConfig, spawner: Arc<Spawner> },
    /// A service manager's. Where the vocabulary's size is given, the worker's model must fit it.
    Attached { vocab_size: Option<u32> },
}

/// Rows by which a model's output may exceed its vocabulary: publishers pad it to a multiple of at most this.
const VOCAB_PADDING_MAX: u32 = 1024;

/// What a keeper is made of.
pub(super) struct Post {
    pub(super) id: WorkerId,
    pub(super) origin: Origin,
    pub(super) socket: PathBuf,
    pub(super) timing: SupervisorTiming,
    pub(super) core: Arc<Core>,
}

struct Keeper {
    post: Post,
    machine: Machine,
    watchdog: Watchdog,
    /// Counts the lives; 1 is the first.
    epoch: u64,
    /// What heartbeats have shown in this life; the counters of requests come from the core.
    vitals: Vitals,
    /// Process of an attached worker, where it is sure to be that.
    attached_pid: Option<u32>,
    /// The last reason logged, so that each try to connect does not log it again.
    logged: Option<String>,
    process: Option<WorkerProcess>,
    last_exit: LastExit,
    client: Option<AbortOnDropHandle<()>>,
    outbound: Option<mpsc::Sender<ToWorker>>,
    reports: Option<mpsc::Receiver<Report>>,
    loaded: Option<(ModelInfo, WorkerLimits)>,
}

/// Runs until the worker has stopped on demand.
pub(super) async fn run(post: Post, mut orders: mpsc::Receiver<Order>) {
    let now = Instant::now();
    // Workers of one gateway, and of gateways started together, must not share their jitter.
    let seed = (u64::from(std::process::id()) << 32) | u64::from(post.id.0);
    let tenure = match post.origin {
        Origin::Managed { .. } => Tenure::Managed,
        Origin::Attached { .. } => Tenure::Attached,
    };
    let mut keeper = Keeper {
        machine: Machine::new(tenure, post.timing, seed, now),
        watchdog: Watchdog::new(post.timing, now),
        epoch: 0,
        vitals: Vitals::default(),
        attached_pid: None,
        logged: None,
        process: None,
        last_exit: LastExit::unknown(),
        client: None,
        outbound: None,
        reports: None,
        loaded: None,
        post,
    };
    while keeper.machine.state() != WorkerState::Stopped {
        let event = keeper.next_event(&mut orders).await;
        keeper.feed(event).await;
    }
}

impl Keeper {
    /// Waits for the next thing that concerns the machine.
    async fn next_event(&mut self, orders: &mut mpsc::Receiver<Order>) -> Event {
        // Kept over reports: a stuck engine's process may go on reporting oftener than it is looked at.
        let mut looked = Instant::now();
        loop {
            let state = self.machine.state();
            let look = self.look_period(state).map(|period| looked + period);
            let deadline = self.machine.deadline();
            tokio::select! {
                biased;
                Some(report) = next_report(&mut self.reports) => {
                    if let Some(event) = self.take_report(report) {
                        return event;
                    }
                }
                Some(order) = orders.recv() => return match order {
                    Order::Drain(grace) => Event::Drain(grace),
                    Order::Restart(grace) => Event::Restart(grace),
                },
                exit = wait(&mut self.process) => return Event::Exited(exit),
                () = sleep_until(deadline) => return Event::Tick,
                () = sleep_until(look) => {
                    looked = Instant::now();
                    if let Some(event) = self.look(state) {
                        return event;
                    }
                }
            }
        }
    }

    /// How often the worker is looked at in this state, if at all.
    fn look_period(&self, state: WorkerState) -> Option<Duration> {
        match state {
            WorkerState::Draining => Some(DRAIN_LOOK),
            WorkerState::Loading | WorkerState::Ready => Some(Watchdog::look_period(&self.post.timing)),
            _ => None,
        }
    }

    /// Looks at a worker that loads, serves or drains.
    fn look(&mut self, state: WorkerState) -> Option<Event> {
        let (core, id) = (&self.post.core, self.post.id);
        let engine = match state {
            WorkerState::Draining if core.requests_of(id) == 0 => return Some(Event::Idle),
            WorkerState::Loading => Engine::Loading,
            _ => Engine::Serving,
        };
        let Vitals { step, pongs, .. } = core.vitals(id);
        match self.watchdog.check(Instant::now(), engine, Vitals { step, pongs, ..self.vitals }) {
            Verdict::Quiet => None,
            Verdict::Ping(nonce) => {
                match &self.outbound {
                    // A full queue means that the worker does not read, which the watchdog sees.
                    Some(outbound) => drop(outbound.try_send(ToWorker::Ping { nonce })),
                    None => core.send(id, ToWorker::Ping { nonce }),
                }
                None
            }
            Verdict::Hung(reason) => Some(Event::Lost(Loss::Hung(reason))),
            Verdict::Silent(reason) => Some(Event::Lost(Loss::Silent(reason))),
        }
    }

    fn take_report(&mut self, report: Report) -> Option<Event> {
        let (core, id) = (&self.post.core, self.post.id);
        Some(match report {
            Report::Hello { version, own_pid, device } => {
                if let Origin::Attached { .. } = self.post.origin {
                    self.epoch += 1;
                    self.attached_pid = own_pid;
                    core.spawned(id, self.epoch, own_pid);
                }
                self.watchdog = Watchdog::new(self.post.timing, Instant::now());
                core.introduced(id, device);
                Event::Hello(version)
            }
            Report::Loading { done_bytes, total_bytes } => {
                core.loading(id, LoadProgress { done_bytes, total_bytes });
                Event::Progress
            }
            Report::Heartbeat { phase, progress } => {
                let heartbeats = self.vitals.heartbeats + 1;
                self.vitals = Vitals { heartbeats, progress, phase, ..self.vitals };
                return None;
            }
            Report::Ready { model, limits } => match self.other_model(&model) {
                Some(reason) => Event::Lost(Loss::Fatal(reason)),
                None => {
                    self.loaded = Some((model, limits));
                    Event::ModelReady
                }
            },
            Report::Lost(loss) => Event::Lost(loss),
        })
    }

    /// Why an attached worker cannot have the model whose text the gateway handles.
    fn other_model(&self, model: &ModelInfo) -> Option<String> {
        let Origin::Attached { vocab_size: Some(expected) } = self.post.origin else { return None };
        let (actual, name) = (model.vocab_size, &model.name);
        let fits = (expected..=expected.saturating_add(VOCAB_PADDING_MAX)).contains(&actual);
        (!fits).then(|| {
            format!(
                "worker serves {name} with a vocabulary of {actual} tokens, the gateway's model has {expected}; \
                 give both the same --model"
            )
        })
    }

    /// Takes an event through the machine and does what follows, until nothing follows.
    async fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            if let Event::Exited(exit) = event {
                self.last_exit.exit = Some(exit);
                for earlier in self.settle().await {
                    self.step(earlier, &mut events).await;
                }
            }
            self.step(event, &mut events).await;
        }
    }

    async fn step(&mut self, event: Event, events: &mut VecDeque<Event>) {
        let before = self.machine.state();
        for action in self.machine.on(event, Instant::now()) {
            events.extend(self.act(action).await);
        }
        let state = self.machine.state();
        self.post.core.set_state(self.post.id, state);
        if state != before {
            self.log(before, state);
        }
    }

    fn log(&mut self, before: WorkerState, state: WorkerState) {
        let (worker, reason) = (self.post.id.0, self.last_exit.reason());
        let is_attached = matches!(self.post.origin, Origin::Attached { .. });
        let is_news = self.logged.as_ref() != Some(&reason);
        match state {
            WorkerState::Failed if is_news => tracing::error!(worker, reason, "worker failed"),
            WorkerState::Backoff if before == WorkerState::Draining => {
                return tracing::info!(worker, "worker restarts on demand");
            }
            WorkerState::Backoff if is_attached && is_news => {
                tracing::warn!(worker, reason, "worker not attached")
            }
            WorkerState::Backoff if !is_attached => tracing::warn!(worker, reason, "worker crashed"),
            WorkerState::Failed | WorkerState::Backoff => {}
            WorkerState::Starting if is_attached => {}
            _ => {
                self.logged = None;
                return tracing::info!(worker, %state, "worker state");
            }
        }
        self.logged = is_attached.then_some(reason).or(self.logged.take());
    }

    /// The process is gone: collects its last words on stderr and socket, which come before its end.
    async fn settle(&mut self) -> Vec<Event> {
        if let Some(process) = self.process.take() {
            self.last_exit.stderr = process.last_words().await;
        }
        if let Some(client) = self.client.take() {
            let _ = tokio::time::timeout(LAST_REPORTS, client).await;
        }
        let mut events = Vec::new();
        if self.post.core.was_useful(self.post.id) {
            events.push(Event::Useful);
        }
        while let Some(report) = self.reports.as_mut().and_then(|reports| reports.try_recv().ok()) {
            events.extend(self.take_report(report));
        }
        events
    }

    async fn act(&mut self, action: Action) -> Option<Event> {
        let (core, id) = (&self.post.core, self.post.id);
        match action {
            Action::Spawn => return Some(self.spawn().await),
            Action::Connect => self.connect(),
            Action::Disconnect => self.client = None,
            Action::Serve => {
                if let (Some(outbound), Some((model, limits))) = (self.outbound.take(), self.loaded.take()) {
                    core.arrived(id, Arrival { epoch: self.epoch, outbound, model, limits });
                }
            }
            Action::SendDrain => core.send(id, ToWorker::Drain),
            Action::Terminate => self.signal(Signal::SIGTERM),
            Action::Kill => self.signal(Signal::SIGKILL),
            Action::Release(blame) => self.release(blame),
        }
        None
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        } else if let Some(pid) = self.attached_pid.and_then(|pid| i32::try_from(pid).ok()) {
            // Its service manager starts it again. One that is gone already is what was wanted.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    async fn spawn(&mut self) -> Event {
        self.remove_socket();
        self.epoch += 1;
        self.last_exit = LastExit::unknown();
        let post = &self.post;
        let Origin::Managed { config, spawner } = &post.origin else {
            return Event::SpawnFailed("attached workers are not started".to_owned(), ErrorKind::Unsupported);
        };
        match WorkerProcess::spawn(spawner, config, &post.socket, post.id.0).await {
            Ok(process) => {
                // Before its life is counted, so that nobody sees the new life in the old one's last state.
                post.core.set_state(post.id, WorkerState::Starting);
                post.core.spawned(post.id, self.epoch, Some(process.pid()));
                self.process = Some(process);
                Event::Spawned
            }
            Err(error) => {
                post.core.set_state(post.id, WorkerState::Starting);
                post.core.spawned(post.id, self.epoch, None);
                let program = config.program.display();
                Event::SpawnFailed(format!("cannot start worker {program}: {error}"), error.kind())
            }
        }
    }

    fn connect(&mut self) {
        let (outbound, queued) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
        let (report, reports) = mpsc::channel(REPORTS_MAX);
        let (id, socket) = (self.post.id, self.post.socket.clone());
        // An attached worker's life is counted once it has answered.
        let (epoch, patience) = match self.post.origin {
            Origin::Managed { .. } => (self.epoch, Patience::Boundless),
            Origin::Attached { .. } => (self.epoch + 1, Patience::OneTry),
        };
        let (for_messages, for_unsendable) = (Arc::clone(&self.post.core), Arc::clone(&self.post.core));
        let client = async move {
            let sink = Sink {
                message: |message| for_messages.message(id, epoch, message),
                unsendable: |message: &ToWorker, reason| {
                    for_unsendable.unsendable(id, epoch, message, reason)
                },
            };
            worker_client::run(&socket, patience, queued, sink, report).await;
        };
        self.client = Some(AbortOnDropHandle::new(tokio::spawn(client)));
        self.outbound = Some(outbound);
        self.reports = Some(reports);
        self.loaded = None;
        self.attached_pid = None;
        self.vitals = Vitals::default();
    }

    /// No process is left.
    fn release(&mut self, blame: Blame) {
        self.remove_socket();
        self.reports = None;
        self.outbound = None;
        self.last_exit.cause = self.machine.cause().map(str::to_owned);
        self.last_exit.permanent = self.machine.is_failed_for_good();
        let reason = self.last_exit.reason();
        let crash = (blame == Blame::Suspect).then_some(reason.as_str());
        self.post.core.release(self.post.id, self.last_exit.clone(), crash);
    }

    fn remove_socket(&self) {
        if let Origin::Attached { .. } = self.post.origin {
            return;
        }
        // It is not there, or the worker took it along, or the run directory's removal will say so.
        let _ = std::fs::remove_file(&self.post.socket);
    }
}

async fn next_report(reports: &mut Option<mpsc::Receiver<Report>>) -> Option<Report> {
    match reports {
        Some(reports) => reports.recv().await,
        None => None,
    }
}

async fn wait(process: &mut Option<WorkerProcess>) -> crate::supervisor::exit::ExitKind {
    match process {
        Some(process) => process.wait().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
