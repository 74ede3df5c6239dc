//! What the lock of [`super::core`] guards: the requests, the workers as requests see them, and the steps that change
//! both. Nothing here waits or calls the system: everything sent goes into a bounded channel that takes it at once or
//! not at all, and log lines are written once the lock is free.

use super::notice::Notice;
use super::request::FleetEvent;
use super::snapshot::{WorkerSnapshot, WorkerState};
use crate::admission::Admission;
use crate::ledger::{Cleared, Death, Ended, Ledger, Placement, RequestError, Standing, TokenVerdict};
use crate::routing::{Candidate, Decision, Outlook, Places, Reason, Router};
use shared::ids::{RequestId, WorkerId};
use shared::ipc::message::{EngineStats, FinishReason, Submit, Timings, ToWorker, TokenEvent};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::Span;

/// How long a worker that refused a request for lack of room is left alone.
pub(super) const REFUSAL_PAUSE: Duration = Duration::from_millis(20);

/// How long an isolated request waits for an empty worker to come back before another one is emptied for it: most
/// models load in less. Some workers never come, such as one to attach to that nobody starts.
pub(super) const RETURN_WAIT: Duration = Duration::from_secs(60);

/// The requests and the workers of one fleet.
pub(super) struct State {
    pub(super) ledger: Ledger<Consumer>,
    pub(super) router: Router,
    pub(super) admission: Admission,
    pub(super) slots: Vec<Slot>,
    pub(super) next_id: u64,
    pub(super) draining: bool,
    /// To be told when the lock is free.
    pub(super) notices: Vec<Notice>,
}

/// Where one request's events go.
pub(super) struct Consumer {
    pub(super) events: mpsc::Sender<FleetEvent>,
    /// What the request was submitted in; it carries the API's request id.
    pub(super) span: Span,
}

/// One worker as requests see it.
pub(super) struct Slot {
    pub(super) view: WorkerSnapshot,
    /// Which life of the process `outbound` belongs to; messages of another are dropped.
    pub(super) epoch: u64,
    /// Present while the worker is ready.
    pub(super) outbound: Option<mpsc::Sender<ToWorker>>,
    pub(super) pongs: u64,
    pub(super) useful: bool,
    pub(super) paused_until: Option<Instant>,
    /// When it served last, or was first to.
    pub(super) away_since: Instant,
    /// From the limits it announced.
    pub(super) places: Places,
    pub(super) tokens_generated: metrics::Counter,
}

impl Slot {
    pub(super) fn new(id: WorkerId) -> Self {
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
        Self {
            view,
            epoch: 0,
            outbound: None,
            pongs: 0,
            useful: false,
            paused_until: None,
            away_since: Instant::now(),
            places: Places { requests: 1, suspects: 1 },
            tokens_generated,
        }
    }
}

impl State {
    pub(super) fn slot(&mut self, worker: WorkerId) -> Option<&mut Slot> {
        self.slots.get_mut(worker.0 as usize)
    }

    /// Why no worker will ever serve again, or `None` while one does or may.
    pub(super) fn hopeless(&self) -> Option<String> {
        let lost = |slot: &Slot| match slot.view.state {
            WorkerState::Stopped => true,
            // With an open circuit it is tried again, and requests wait for that as their deadlines allow.
            WorkerState::Failed => slot.view.last_exit.as_ref().is_some_and(|exit| exit.permanent),
            _ => false,
        };
        self.slots.iter().all(lost).then(|| {
            self.slots.first().map_or_else(|| "no worker configured".to_owned(), |slot| slot.view.describe())
        })
    }

    /// The longest context among the workers known so far.
    pub(super) fn context_tokens(&self) -> u32 {
        let known = self.slots.iter().filter_map(|slot| slot.view.limits.as_ref());
        known.map(|limits| limits.context_tokens).max().unwrap_or(u32::MAX)
    }

    /// Hands waiting requests to workers until one side runs out.
    pub(super) fn dispatch(&mut self, now: Instant) {
        loop {
            let candidates: Vec<Candidate> = self
                .slots
                .iter()
                .filter(|slot| slot.takes_requests(now))
                .map(|slot| Candidate {
                    worker: slot.view.id,
                    load: self.ledger.load(slot.view.id),
                    places: slot.places,
                })
                .collect();
            let outlook = self.outlook(now);
            let Some(decision) = self.router.next(&self.ledger, &candidates, outlook, now) else { return };
            let Decision { id, worker, reason } = decision;
            let slot = &mut self.slots[worker.0 as usize];
            let Some(permit) = slot.outbound.as_ref().and_then(|outbound| outbound.try_reserve().ok()) else {
                // The worker does not read now; its watchdog decides whether that is a hang.
                slot.paused_until = Some(now + REFUSAL_PAUSE);
                continue;
            };
            let Some(submit) = self.ledger.assign(id, worker) else { return };
            self.router.placed(self.ledger.prefix(id), worker);
            super::metrics::routed(reason);
            self.notices.extend(submitted(&submit, decision, self.ledger.consumer(id)));
            permit.send(ToWorker::Submit(Box::new(submit)));
        }
    }

    /// Whether an empty worker may be waited for.
    pub(super) fn outlook(&self, now: Instant) -> Outlook {
        let returns = |slot: &Slot| {
            let is_on_its_way = matches!(
                slot.view.state,
                WorkerState::Starting | WorkerState::Loading | WorkerState::Crashed | WorkerState::Backoff
            );
            is_on_its_way && now.saturating_duration_since(slot.away_since) < RETURN_WAIT
        };
        if self.slots.iter().any(returns) { Outlook::Returning } else { Outlook::Complete }
    }

    pub(super) fn step(
        &mut self,
        worker: WorkerId,
        events: Vec<TokenEvent>,
        stats: EngineStats,
    ) -> Result<(), String> {
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
        freed |= self.absolve();
        if freed {
            self.dispatch(Instant::now());
        }
        Ok(())
    }

    /// Sees to the suspects that have shown progress; says whether there were any. One that ran alone gives way to the
    /// next that must: it goes on wherever there is a place, with what its worker's cache kept of it.
    fn absolve(&mut self) -> bool {
        let cleared = self.ledger.take_cleared();
        for &Cleared { id, was } in &cleared {
            let span = self.ledger.consumer(id).map_or_else(Span::none, |consumer| consumer.span.clone());
            self.notices.push(Notice::Cleared { span, sequence: id });
            super::metrics::cleared();
            let others = self.ledger.next_waiting(Standing::Isolated, Instant::now()).is_some();
            if was == Standing::Isolated
                && others
                && let Some((placement, ended)) = self.ledger.recall(id)
            {
                self.cancel_in_worker(id, Some(placement));
                if let Some(ended) = ended {
                    self.conclude(ended, Timings::default());
                }
            }
        }
        !cleared.is_empty()
    }

    /// The worker's process is gone: its requests go elsewhere.
    pub(super) fn release(&mut self, worker: WorkerId, death: Death<'_>, now: Instant) {
        let released = self.ledger.release(worker, death, now);
        self.router.lost(worker, released.blow);
        super::metrics::released(death, &released);
        for ended in released.ended {
            if let Err(RequestError::Poison { crashes, .. }) = &ended.outcome {
                let span = ended.consumer.span.clone();
                self.notices.push(Notice::Poison { span, sequence: ended.id, worker, crashes: *crashes });
            }
            self.conclude(ended, Timings::default());
        }
        self.dispatch(now);
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
    pub(super) fn conclude(&mut self, ended: Ended<Consumer>, timings: Timings) {
        let outcome = match &ended.outcome {
            Ok(FinishReason::Stop) => "stop",
            Ok(FinishReason::Length) => "length",
            Ok(FinishReason::Cancelled) => "cancelled",
            Err(error) => error.code(),
        };
        metrics::counter!("rocmforge_requests_ended_total", "outcome" => outcome).increment(1);
        self.admission.finished(Instant::now(), self.ledger.waiting());
        self.cancel_in_worker(ended.id, ended.placement);
        let event = match ended.outcome {
            Ok(reason) => FleetEvent::Finished { reason, timings, attempts: ended.submissions },
            Err(error) => FleetEvent::Failed(error),
        };
        // Tokens leave one place free; only a stream that is gone refuses.
        let _ = ended.consumer.events.try_send(event);
    }

    pub(super) fn cancel_in_worker(&mut self, id: RequestId, placement: Option<Placement>) {
        let Some(Placement { worker, attempt }) = placement else { return };
        let Some(slot) = self.slot(worker) else { return };
        let Some(outbound) = slot.outbound.as_ref() else { return };
        if outbound.try_send(ToWorker::Cancel { id, attempt }).is_err() {
            // A cancel must not be lost: without its connection the worker is given up and its blocks with it.
            slot.outbound = None;
            self.notices.push(Notice::Deaf { worker });
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

/// What there is to tell about a submission.
fn submitted(submit: &Submit, decision: Decision, consumer: Option<&Consumer>) -> Option<Notice> {
    let (attempt, emitted) = (submit.attempt.0, submit.emitted.len());
    let (sequence, worker) = (decision.id, decision.worker);
    if attempt == 0 {
        return None;
    }
    let span = consumer.map_or_else(Span::none, |consumer| consumer.span.clone());
    Some(match decision.reason {
        Reason::Alone => Notice::Isolated { span, sequence, worker, attempt, emitted },
        Reason::Load | Reason::Prefix => Notice::Resumed { span, sequence, worker, attempt, emitted },
    })
}
