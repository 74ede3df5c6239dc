//! The requests and the workers under one lock: the place where the pure parts (`ledger`, `routing`, `admission`) meet
//! events from connections, supervisors and consumers. Used by [`super::Fleet`], by each worker's keeper and by
//! [`super::TokenStream`].
//!
//! What holds always: the lock is held for computation only, never over an `.await` or a system call; nothing here
//! waits for a worker or a consumer. A consumer that leaves too much unread loses its request, a worker that does not
//! take a message gets no request; neither holds up anybody else.

use super::notice::Telling;
use super::request::{TokenRequest, TokenStream};
use super::snapshot::{FleetSnapshot, LoadProgress, WorkerState};
use super::state::{Consumer, REFUSAL_PAUSE, Slot, State};
use crate::admission::{Admission, PROMPT_TOKENS_MAX, QueueLimits, SubmitError};
use crate::ledger::{Death, Ledger, Patience, RequestError, Work};
use crate::routing::{Places, Router, prefix_hashes};
use crate::supervisor::exit::{ExitKind, LastExit};
use crate::supervisor::watchdog::Vitals;
use shared::ids::{RequestId, WorkerId};
use shared::ipc::message::{
    DeviceInfo, EngineStats, FromWorker, ModelInfo, Rejection, Timings, ToWorker, WorkerLimits,
};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::Span;

/// Longest deadline taken at its word; beyond it a request would outlive any process.
const DEADLINE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The state shared by everything that runs for one fleet.
pub(crate) struct Core {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

/// A worker that became ready.
pub(super) struct Arrival {
    pub(super) epoch: u64,
    pub(super) outbound: mpsc::Sender<ToWorker>,
    pub(super) model: ModelInfo,
    pub(super) limits: WorkerLimits,
}

/// The locked state. When it is dropped, its fields go in this order: the lock is free before anything is told.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    telling: Telling,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.telling.0 = std::mem::take(&mut self.state.notices);
    }
}

impl Core {
    pub(super) fn new(workers: usize, queue: QueueLimits) -> Self {
        let slots = (0..workers).map(|index| Slot::new(WorkerId(index as u32))).collect();
        let state = State {
            ledger: Ledger::new(workers),
            router: Router::default(),
            admission: Admission::new(queue),
            slots,
            next_id: 0,
            draining: false,
            notices: Vec::new(),
        };
        Self { state: Mutex::new(state), changes: watch::Sender::new(0) }
    }

    /// A panic under the lock is a defect of one request; the state is whole between any two statements that
    /// change it, so the others go on.
    fn lock(&self) -> Locked<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { state, telling: Telling::default() }
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
        let prefix = prefix_hashes(&request.prompt);
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
        let work = Work { prompt, prefix, sampling, limits, output_tokens_max };
        state.ledger.admit(id, work, patience, Consumer { events, span: Span::current() }, now);
        state.dispatch(now);
        drop(state);
        Ok(TokenStream::new(id, receiver, Arc::clone(self)))
    }

    /// Why not even the shortest request would be taken now.
    pub(super) fn room(&self) -> Result<(), SubmitError> {
        let state = self.lock();
        if state.draining {
            return Err(SubmitError::Draining);
        }
        state.admission.check(state.ledger.waiting(), 1)
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

    /// Changes what may wait; what waits already is not touched.
    pub(super) fn set_queue_limits(&self, requests: usize, tokens: u64) {
        self.lock().admission.set_limits(requests, tokens);
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
            | FromWorker::Fatal { .. }
            | FromWorker::Heartbeat { .. }
            | FromWorker::Leaving
            | FromWorker::Busy { .. } => {}
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

    /// What the watchdog compares, as far as messages about requests show it.
    pub(super) fn vitals(&self, worker: WorkerId) -> Vitals {
        self.lock().slot(worker).map_or_else(Vitals::default, |slot| Vitals {
            step: slot.view.stats.step,
            pongs: slot.pongs,
            ..Vitals::default()
        })
    }

    /// Requests the worker holds.
    pub(super) fn requests_of(&self, worker: WorkerId) -> usize {
        self.lock().ledger.load(worker).requests
    }

    /// Whether the worker emitted a token in the present life.
    pub(super) fn was_useful(&self, worker: WorkerId) -> bool {
        self.lock().slot(worker).is_some_and(|slot| slot.useful)
    }

    /// A life of `worker` began: its process was started, or its connection made.
    pub(super) fn spawned(&self, worker: WorkerId, epoch: u64, pid: Option<u32>) {
        self.update(worker, |slot| {
            slot.epoch = epoch;
            slot.useful = false;
            slot.paused_until = None;
            slot.view.pid = pid;
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
                slot.places = Places::of(&arrival.limits);
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
        let serves = |state| matches!(state, WorkerState::Ready | WorkerState::Draining);
        if !serves(new) {
            slot.outbound = None;
            if serves(old) {
                slot.away_since = Instant::now();
            }
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
        let mut is_ending = false;
        let exit = last_exit.exit;
        if let Some(slot) = state.slot(worker) {
            is_ending = matches!(slot.view.state, WorkerState::Draining | WorkerState::Stopped);
            slot.outbound = None;
            slot.view.pid = None;
            slot.view.last_exit = Some(last_exit);
        }
        let death = match crash {
            Some(last) => Death::Crash(last),
            None if !is_ending && exit.is_some_and(ExitKind::is_from_outside) => Death::Killed,
            None => Death::Ordered,
        };
        state.release(worker, death, Instant::now());
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

#[cfg(test)]
mod tests;
