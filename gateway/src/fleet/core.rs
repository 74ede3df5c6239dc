//! The requests and the workers under one lock: the place where the pure parts (`ledger`, `routing`, `admission`) meet
//! events from connections, supervisors and consumers. Used by [`super::Fleet`], by each worker's keeper and by
//! [`super::TokenStream`].
//!
//! What holds always: the lock is held for computation only, never over an `.await` or a system call; nothing here
//! waits for a worker or a consumer. A consumer that leaves too much unread loses its request, a worker that does not
//! take a message gets no request; neither holds up anybody else.

use super::request::{FleetEvent, TokenRequest, TokenStream};
use super::snapshot::{FleetSnapshot, LoadProgress, WorkerSnapshot, WorkerState};
use crate::admission::{Admission, PROMPT_TOKENS_MAX, QueueLimits, SubmitError};
use crate::ledger::{Ended, Ledger, Patience, Placement, RequestError, TokenVerdict, Work};
use crate::routing::{self, Candidate};
use crate::supervisor::exit::LastExit;
use crate::supervisor::watchdog::Vitals;
use shared::ids::{RequestId, WorkerId};
use shared::ipc::message::{
    DeviceInfo, EngineStats, FinishReason, FromWorker, ModelInfo, Rejection, Timings, ToWorker, TokenEvent,
    WorkerLimits,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Longest deadline taken at its word; beyond it a request would outlive any process.
const DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a worker that refused a request for lack of room is left alone.
const REFUSAL_PAUSE: Duration = Duration::from_millis(20);

/// The state shared by everything that runs for one fleet.
pub(crate) struct Core {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

struct State {
    ledger: Ledger<Consumer>,
    admission: Admission,
    slots: Vec<Slot>,
    next_id: u64,
    draining: bool,
}

/// Where one request's events go.
struct Consumer {
    events: mpsc::Sender<FleetEvent>,
}

/// One worker as requests see it.
struct Slot {
    view: WorkerSnapshot,
    /// Which life of the process `outbound` belongs to; messages of another are dropped.
    epoch: u64,
    /// Present while the worker is ready.
    outbound: Option<mpsc::Sender<ToWorker>>,
    pongs: u64,
    useful: bool,
    paused_until: Option<Instant>,
    tokens_generated: metrics::Counter,
}

/// A worker that became ready.
pub(super) struct Arrival {
    pub(super) epoch: u64,
    pub(super) outbound: mpsc::Sender<ToWorker>,
    pub(super) model: ModelInfo,
    pub(super) limits: WorkerLimits,
}

impl Core {
    pub(super) fn new(workers: usize, queue: QueueLimits) -> Self {
        let slots = (0..workers).map(|index| Slot::new(WorkerId(index as u32))).collect();
        let state = State {
            ledger: Ledger::new(workers),
            admission: Admission::new(queue),
            slots,
            next_id: 0,
            draining: false,
        };
        Self { state: Mutex::new(state), changes: watch::Sender::new(0) }
    }

    /// A panic under the lock is a defect of one request; the state is whole between any two statements of this file,
    /// so the others go on.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Takes a request, or says why not; hands it to a worker at once where one has a place.
    pub(super) fn submit(self: &Arc<Self>, request: TokenRequest) -> Result<TokenStream, SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.prompt.len() > PROMPT_TOKENS_MAX {
            return Err(SubmitError::PromptTooLong { tokens: request.prompt.len() });
        }
        let now = Instant::now();
        let mut state = self.lock();
        if state.draining {
            return Err(SubmitError::Draining);
        }
        if let Some(reason) = state.hopeless() {
            return Err(SubmitError::NoWorker { reason });
        }
        let output_tokens_max = request.limits.max_tokens.min(state.context_tokens());
        let tokens = request.prompt.len() as u64 + u64::from(output_tokens_max);
        state.admission.check(state.ledger.waiting(), tokens)?;
        let id = RequestId(state.next_id);
        state.next_id += 1;
        let limits = *state.admission.limits();
        // One place beyond the limit, for the terminal event.
        let (events, receiver) = mpsc::channel(limits.unread_tokens + 1);
        let patience =
            Patience { queue: limits.timeout.min(DEADLINE_MAX), total: request.deadline.min(DEADLINE_MAX) };
        let TokenRequest { prompt, sampling, limits, .. } = request;
        let work = Work { prompt, sampling, limits, output_tokens_max };
        state.ledger.admit(id, work, patience, Consumer { events }, now);
        state.dispatch(now);
        drop(state);
        Ok(TokenStream::new(id, receiver, Arc::clone(self)))
    }

    /// The consumer is gone.
    pub(super) fn cancel(&self, id: RequestId) {
        let mut state = self.lock();
        if let Some((_, placement)) = state.ledger.remove(id) {
            metrics::counter!("rocmforge_requests_ended_total", "outcome" => "cancelled").increment(1);
            state.cancel_in_worker(id, placement);
            state.dispatch(Instant::now());
        }
    }

    pub(super) fn snapshot(&self) -> FleetSnapshot {
        let state = self.lock();
        let workers = state.slots.iter().map(|slot| {
            let load = state.ledger.load(slot.view.id);
            let mut view = slot.view.clone();
            view.in_flight_requests = load.requests;
            view.in_flight_tokens = load.tokens;
            view
        });
        let waiting = state.ledger.waiting();
        FleetSnapshot {
            workers: workers.collect(),
            waiting_requests: waiting.requests,
            waiting_tokens: waiting.tokens,
            draining: state.draining,
            queue_full: state.admission.is_full(waiting),
        }
    }

    /// Requests in flight, waiting ones included.
    pub(super) fn requests(&self) -> usize {
        self.lock().ledger.len()
    }

    /// Refuses new requests from now on.
    pub(super) fn drain(&self) {
        self.lock().draining = true;
        self.changed();
    }

    /// Ends everything that is left.
    pub(super) fn fail_all(&self, error: &RequestError) {
        let mut state = self.lock();
        for ended in state.ledger.fail_all(error) {
            state.conclude(ended, Timings::default());
        }
    }

    /// Time passed: ends what is overdue, and hands out what a pause held back.
    pub(super) fn tick(&self, now: Instant) {
        let mut state = self.lock();
        for ended in state.ledger.expire(now) {
            state.conclude(ended, Timings::default());
        }
        state.dispatch(now);
    }

    /// One message of a ready worker; an error means that it broke the protocol.
    pub(super) fn message(&self, worker: WorkerId, epoch: u64, message: FromWorker) -> Result<(), String> {
        let now = Instant::now();
        let mut state = self.lock();
        match state.slots.get(worker.0 as usize) {
            Some(slot) if slot.epoch == epoch => {}
            _ => return Ok(()),
        }
        match message {
            FromWorker::Step { events, stats } => return state.step(worker, events, stats),
            FromWorker::Pong { stats, .. } => {
                if let Some(slot) = state.slot(worker) {
                    slot.pongs += 1;
                    slot.view.stats = stats;
                }
            }
            FromWorker::Finished { id, attempt, reason, timings } => {
                if let Some(ended) = state.ledger.finish((worker, id, attempt), reason) {
                    state.conclude(ended, timings);
                }
                state.dispatch(now);
            }
            FromWorker::Rejected { id, attempt, error } => {
                if matches!(error, Rejection::Overloaded { .. } | Rejection::Draining)
                    && let Some(slot) = state.slot(worker)
                {
                    slot.paused_until = Some(now + REFUSAL_PAUSE);
                }
                if let Some(ended) = state.ledger.reject((worker, id, attempt), error) {
                    state.conclude(ended, Timings::default());
                }
                state.dispatch(now);
            }
            FromWorker::Hello { .. }
            | FromWorker::Loading { .. }
            | FromWorker::Ready { .. }
            | FromWorker::Fatal { .. } => {}
        }
        Ok(())
    }

    /// A message to a worker could not be encoded; only its own request suffers.
    pub(super) fn unsendable(&self, worker: WorkerId, epoch: u64, message: &ToWorker, reason: String) {
        if let ToWorker::Submit(submit) = message {
            let error = Rejection::Invalid { message: reason };
            let rejected = FromWorker::Rejected { id: submit.id, attempt: submit.attempt, error };
            // A rejection cannot break the protocol.
            let _ = self.message(worker, epoch, rejected);
        }
    }

    /// What the watchdog compares.
    pub(super) fn vitals(&self, worker: WorkerId) -> Vitals {
        let mut state = self.lock();
        let requests = state.ledger.load(worker).requests;
        state.slot(worker).map_or_else(Vitals::default, |slot| Vitals {
            step: slot.view.stats.step,
            pongs: slot.pongs,
            requests,
        })
    }

    /// Whether the worker emitted a token in the present life.
    pub(super) fn was_useful(&self, worker: WorkerId) -> bool {
        self.lock().slot(worker).is_some_and(|slot| slot.useful)
    }

    /// A process was started for `worker`.
    pub(super) fn spawned(&self, worker: WorkerId, epoch: u64, pid: u32) {
        self.update(worker, |slot| {
            slot.epoch = epoch;
            slot.useful = false;
            slot.paused_until = None;
            slot.view.pid = Some(pid);
            slot.view.restarts = u32::try_from(epoch.saturating_sub(1)).unwrap_or(u32::MAX);
            slot.view.stats = EngineStats::default();
        });
    }

    pub(super) fn introduced(&self, worker: WorkerId, device: DeviceInfo) {
        self.update(worker, |slot| slot.view.device = Some(device));
    }

    pub(super) fn loading(&self, worker: WorkerId, progress: LoadProgress) {
        self.update(worker, |slot| slot.view.loading = Some(progress));
    }

    /// The worker takes requests from now on.
    pub(super) fn arrived(&self, worker: WorkerId, arrival: Arrival) {
        self.update(worker, |slot| {
            if slot.epoch == arrival.epoch {
                slot.outbound = Some(arrival.outbound);
                slot.view.model = Some(arrival.model);
                slot.view.limits = Some(arrival.limits);
                slot.view.state = WorkerState::Ready;
                slot.view.loading = None;
            }
        });
        self.lock().dispatch(Instant::now());
    }

    /// Where the worker stands now; it is handed requests only in `Ready`.
    pub(super) fn set_state(&self, worker: WorkerId, new: WorkerState) {
        let mut state = self.lock();
        let Some(slot) = state.slot(worker) else { return };
        let old = std::mem::replace(&mut slot.view.state, new);
        if old == new {
            return;
        }
        if new != WorkerState::Loading {
            slot.view.loading = None;
        }
        if !matches!(new, WorkerState::Ready | WorkerState::Draining) {
            slot.outbound = None;
        }
        if let Some(reason) = state.hopeless() {
            let error = RequestError::NoWorker { reason };
            for ended in state.ledger.fail_waiting(&error) {
                state.conclude(ended, Timings::default());
            }
        }
        drop(state);
        self.changed();
    }

    /// The worker's process is gone: its requests go elsewhere. `crash` names the exit where they may have caused it.
    pub(super) fn release(&self, worker: WorkerId, last_exit: LastExit, crash: Option<&str>) {
        let mut state = self.lock();
        if let Some(slot) = state.slot(worker) {
            slot.outbound = None;
            slot.view.pid = None;
            slot.view.last_exit = Some(last_exit);
        }
        let crashes_max = state.admission.limits().crashes;
        let held = state.ledger.load(worker).requests;
        let ended = state.ledger.release(worker, crash, crashes_max);
        metrics::counter!("rocmforge_requests_resumed_total")
            .increment((held - ended.len().min(held)) as u64);
        for ended in ended {
            state.conclude(ended, Timings::default());
        }
        state.dispatch(Instant::now());
    }

    /// Sends a message that is not about a request, if the worker takes one now.
    pub(super) fn send(&self, worker: WorkerId, message: ToWorker) {
        if let Some(outbound) = self.lock().slot(worker).and_then(|slot| slot.outbound.as_ref()) {
            // A full queue means that the worker does not read; the watchdog sees to that.
            let _ = outbound.try_send(message);
        }
    }

    fn update(&self, worker: WorkerId, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.lock().slot(worker) {
            change(slot);
        }
        self.changed();
    }
}

impl Slot {
    fn new(id: WorkerId) -> Self {
        let view = WorkerSnapshot {
            id,
            pid: None,
            device: None,
            state: WorkerState::Starting,
            restarts: 0,
            last_exit: None,
            loading: None,
            model: None,
            limits: None,
            stats: EngineStats::default(),
            in_flight_requests: 0,
            in_flight_tokens: 0,
        };
        let tokens_generated =
            metrics::counter!("rocmforge_tokens_generated_total", "worker" => id.to_string());
        Self { view, epoch: 0, outbound: None, pongs: 0, useful: false, paused_until: None, tokens_generated }
    }
}

impl State {
    fn slot(&mut self, worker: WorkerId) -> Option<&mut Slot> {
        self.slots.get_mut(worker.0 as usize)
    }

    /// Why no worker will serve soon, or `None` while one does or may.
    fn hopeless(&self) -> Option<String> {
        let lost = |slot: &Slot| matches!(slot.view.state, WorkerState::Failed | WorkerState::Stopped);
        self.slots.iter().all(lost).then(|| {
            self.slots.first().map_or_else(|| "no worker configured".to_owned(), |slot| slot.view.describe())
        })
    }

    /// The longest context among the workers known so far.
    fn context_tokens(&self) -> u32 {
        let known = self.slots.iter().filter_map(|slot| slot.view.limits.as_ref());
        known.map(|limits| limits.context_tokens).max().unwrap_or(u32::MAX)
    }

    /// Hands waiting requests to workers until one side runs out.
    fn dispatch(&mut self, now: Instant) {
        while let Some(id) = self.ledger.next_waiting() {
            let candidates = self.slots.iter().filter(|slot| slot.takes_requests(now)).map(|slot| {
                let load = self.ledger.load(slot.view.id);
                Candidate {
                    worker: slot.view.id,
                    requests: load.requests,
                    outstanding_tokens: load.tokens,
                    places: slot.view.limits.as_ref().map_or(1, routing::places),
                }
            });
            let Some(worker) = routing::choose(candidates) else { return };
            let slot = &mut self.slots[worker.0 as usize];
            let Some(permit) = slot.outbound.as_ref().and_then(|outbound| outbound.try_reserve().ok()) else {
                // The worker does not read now; its watchdog decides whether that is a hang.
                slot.paused_until = Some(now + REFUSAL_PAUSE);
                continue;
            };
            let Some(submit) = self.ledger.assign(id, worker) else { return };
            if submit.attempt.0 > 0 {
                tracing::info!(
                    request_id = id.0,
                    worker = worker.0,
                    attempt = submit.attempt.0,
                    emitted = submit.emitted.len(),
                    "request submitted again"
                );
            }
            permit.send(ToWorker::Submit(Box::new(submit)));
        }
    }

    fn step(&mut self, worker: WorkerId, events: Vec<TokenEvent>, stats: EngineStats) -> Result<(), String> {
        let mut delivered = 0;
        let mut freed = false;
        for event in events {
            let id = event.id;
            match self.ledger.token(worker, &event) {
                TokenVerdict::Stale => {}
                TokenVerdict::Broken(reason) => return Err(reason),
                // The last place is for the terminal event.
                TokenVerdict::Deliver(consumer) if consumer.events.capacity() > 1 => {
                    // A closed channel belongs to a stream that is being dropped, which cancels.
                    let _ = consumer.events.try_send(FleetEvent::Token(event.token, event.logprobs));
                    delivered += 1;
                }
                TokenVerdict::Deliver(_) => {
                    self.end_slow(id);
                    freed = true;
                }
            }
        }
        if let Some(slot) = self.slot(worker) {
            slot.view.stats = stats;
            slot.useful |= delivered > 0;
            slot.tokens_generated.increment(delivered);
        }
        if freed {
            self.dispatch(Instant::now());
        }
        Ok(())
    }

    /// Ends a request whose consumer does not read.
    fn end_slow(&mut self, id: RequestId) {
        let limit = self.admission.limits().unread_tokens;
        if let Some((consumer, placement)) = self.ledger.remove(id) {
            let error = RequestError::SlowConsumer { unread: limit, limit };
            self.conclude(
                Ended { id, consumer, outcome: Err(error), submissions: 0, placement },
                Timings::default(),
            );
        }
    }

    /// Tells the consumer how its request ended, and the worker if it still has it.
    fn conclude(&mut self, ended: Ended<Consumer>, timings: Timings) {
        let outcome = match &ended.outcome {
            Ok(FinishReason::Stop) => "stop",
            Ok(FinishReason::Length) => "length",
            Ok(FinishReason::Cancelled) => "cancelled",
            Err(error) => error.code(),
        };
        metrics::counter!("rocmforge_requests_ended_total", "outcome" => outcome).increment(1);
        self.admission.finished(Instant::now());
        self.cancel_in_worker(ended.id, ended.placement);
        let event = match ended.outcome {
            Ok(reason) => FleetEvent::Finished { reason, timings, attempts: ended.submissions },
            Err(error) => FleetEvent::Failed(error),
        };
        // Tokens leave one place free; only a stream that is gone refuses.
        let _ = ended.consumer.events.try_send(event);
    }

    fn cancel_in_worker(&mut self, id: RequestId, placement: Option<Placement>) {
        let Some(Placement { worker, attempt }) = placement else { return };
        let Some(slot) = self.slot(worker) else { return };
        let Some(outbound) = slot.outbound.as_ref() else { return };
        if outbound.try_send(ToWorker::Cancel { id, attempt }).is_err() {
            // A cancel must not be lost: without its connection the worker is given up and its blocks with it.
            tracing::warn!(worker = worker.0, "worker does not read its socket, connection dropped");
            slot.outbound = None;
        }
    }
}

impl Slot {
    fn takes_requests(&self, now: Instant) -> bool {
        self.view.state == WorkerState::Ready
            && self.outbound.is_some()
            && self.paused_until.is_none_or(|until| now >= until)
    }
}
