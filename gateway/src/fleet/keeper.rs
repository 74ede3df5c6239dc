//! Keeps one worker alive: the loop that feeds its state machine with what happens and does what the machine says.
//! One task per worker, started and joined by [`super::Fleet`].

use super::core::{Arrival, Core};
use super::snapshot::{LoadProgress, WorkerState};
use crate::supervisor::exit::LastExit;
use crate::supervisor::machine::{Action, Blame, Event, Loss, Machine};
use crate::supervisor::process::{Spawner, WorkerProcess};
use crate::supervisor::watchdog::{Verdict, Watchdog};
use crate::supervisor::{SupervisorTiming, WorkerConfig};
use crate::worker_client::{self, OUTBOUND_MESSAGES_MAX, Report, Sink};
use nix::sys::signal::Signal;
use shared::ids::WorkerId;
use shared::ipc::message::{ModelInfo, ToWorker, WorkerLimits};
use std::collections::VecDeque;
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

/// Take nothing new, finish within the time, end.
#[derive(Debug)]
pub(super) struct DrainOrder(pub(super) Duration);

/// What a keeper is made of.
pub(super) struct Post {
    pub(super) id: WorkerId,
    pub(super) config: WorkerConfig,
    pub(super) socket: PathBuf,
    pub(super) timing: SupervisorTiming,
    pub(super) core: Arc<Core>,
    pub(super) spawner: Arc<Spawner>,
}

struct Keeper {
    post: Post,
    machine: Machine,
    watchdog: Watchdog,
    /// Counts the processes started; 1 is the first.
    epoch: u64,
    process: Option<WorkerProcess>,
    last_exit: LastExit,
    client: Option<AbortOnDropHandle<()>>,
    outbound: Option<mpsc::Sender<ToWorker>>,
    reports: Option<mpsc::Receiver<Report>>,
    loaded: Option<(ModelInfo, WorkerLimits)>,
}

/// Runs until the worker has stopped on demand.
pub(super) async fn run(post: Post, mut orders: mpsc::Receiver<DrainOrder>) {
    let now = Instant::now();
    // Workers of one gateway, and of gateways started together, must not share their jitter.
    let seed = (u64::from(std::process::id()) << 32) | u64::from(post.id.0);
    let mut keeper = Keeper {
        machine: Machine::new(post.timing, seed, now),
        watchdog: Watchdog::new(post.timing, now),
        epoch: 0,
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
    async fn next_event(&mut self, orders: &mut mpsc::Receiver<DrainOrder>) -> Event {
        loop {
            let state = self.machine.state();
            let look = self.look_period(state);
            let deadline = self.machine.deadline();
            tokio::select! {
                biased;
                Some(report) = next_report(&mut self.reports) => return self.take_report(report),
                Some(DrainOrder(grace)) = orders.recv() => return Event::Drain(grace),
                exit = wait(&mut self.process) => return Event::Exited(exit),
                () = sleep_until(deadline) => return Event::Tick,
                () = tokio::time::sleep(look), if matches!(state, WorkerState::Ready | WorkerState::Draining) => {
                    if let Some(event) = self.look(state) {
                        return event;
                    }
                }
            }
        }
    }

    fn look_period(&self, state: WorkerState) -> Duration {
        if state == WorkerState::Draining {
            return DRAIN_LOOK;
        }
        let timing = &self.post.timing;
        timing.ping_interval.min(timing.hang / 4)
    }

    /// Looks at a worker that serves or drains.
    fn look(&mut self, state: WorkerState) -> Option<Event> {
        let vitals = self.post.core.vitals(self.post.id);
        if state == WorkerState::Draining {
            return (vitals.requests == 0).then_some(Event::Idle);
        }
        match self.watchdog.check(Instant::now(), vitals) {
            Verdict::Quiet => None,
            Verdict::Ping(nonce) => {
                self.post.core.send(self.post.id, ToWorker::Ping { nonce });
                None
            }
            Verdict::Hung => Some(Event::Lost(Loss::Hung)),
        }
    }

    fn take_report(&mut self, report: Report) -> Event {
        let (core, id) = (&self.post.core, self.post.id);
        match report {
            Report::Hello { version, device } => {
                core.introduced(id, device);
                Event::Hello(version)
            }
            Report::Loading { done_bytes, total_bytes } => {
                core.loading(id, LoadProgress { done_bytes, total_bytes });
                Event::Progress
            }
            Report::Ready { model, limits } => {
                self.loaded = Some((model, limits));
                Event::ModelReady
            }
            Report::Lost(loss) => Event::Lost(loss),
        }
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
            let worker = self.post.id.0;
            match state {
                WorkerState::Failed => {
                    tracing::error!(worker, reason = %self.last_exit.reason(), "worker failed")
                }
                WorkerState::Backoff => {
                    tracing::warn!(worker, reason = %self.last_exit.reason(), "worker crashed")
                }
                _ => tracing::info!(worker, %state, "worker state"),
            }
        }
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
            events.push(self.take_report(report));
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
                self.watchdog = Watchdog::new(self.post.timing, Instant::now());
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
        }
    }

    async fn spawn(&mut self) -> Event {
        self.remove_socket();
        self.epoch += 1;
        self.last_exit = LastExit::unknown();
        let post = &self.post;
        match WorkerProcess::spawn(&post.spawner, &post.config, &post.socket, post.id.0).await {
            Ok(process) => {
                post.core.spawned(post.id, self.epoch, process.pid());
                self.process = Some(process);
                Event::Spawned
            }
            Err(error) => {
                let program = post.config.program.display();
                Event::SpawnFailed(format!("cannot start worker {program}: {error}"), error.kind())
            }
        }
    }

    fn connect(&mut self) {
        let (outbound, queued) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
        let (report, reports) = mpsc::channel(REPORTS_MAX);
        let (id, epoch, socket) = (self.post.id, self.epoch, self.post.socket.clone());
        let (for_messages, for_unsendable) = (Arc::clone(&self.post.core), Arc::clone(&self.post.core));
        let client = async move {
            let sink = Sink {
                message: |message| for_messages.message(id, epoch, message),
                unsendable: |message: &ToWorker, reason| {
                    for_unsendable.unsendable(id, epoch, message, reason)
                },
            };
            worker_client::run(&socket, queued, sink, report).await;
        };
        self.client = Some(AbortOnDropHandle::new(tokio::spawn(client)));
        self.outbound = Some(outbound);
        self.reports = Some(reports);
        self.loaded = None;
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
