//! The loop that turns requests into tokens: `plan → forward → sample → report`, one step after the other.
//!
//! Runs on a thread of its own (the one that loaded the model, since device contexts can be bound to threads),
//! fed by one closed [`Event`] enum and generic over [`Forward`]. The IPC server feeds it and writes what it says.
//!
//! What holds always: one `Step` frame per step; every accepted request ends in one `Finished` or `Rejected`
//! unless its gateway goes away; without work the thread sleeps on its channel; when the gateway does not read,
//! the bounded outbound channel fills and the engine waits there rather than grow. A logits row no token can be
//! drawn from ends that request alone; an error of the forward pass ends the engine.
//! Deliberately absent: any knowledge of sockets, frames and text.

mod memory;
mod step;
mod step_budget;
mod timeline;

pub use memory::resident_bytes;

use crate::activity::Activity;
use crate::batch::{Batch, Forward};
use crate::fault::{self, Faults};
use crate::sampler::Sampler;
use crate::scheduler::{Admission, Rank, Scheduler, SchedulerConfig};
use memory::MemoryGauge;
use shared::error::Category;
use shared::ids::{Attempt, RequestId};
use shared::ipc::FromWorker;
use shared::ipc::message::{EngineStats, FinishReason, Phase, Submit, Timings};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use step_budget::StepBudget;
use timeline::Timeline;
use tokio::sync::mpsc;

/// Events that may wait for the engine. A sender waits past it, so a flood of requests stays in the socket.
pub const EVENTS_MAX: usize = 256;
/// Messages that may wait for the writer. Step frames at a step per millisecond: a 64 ms hiccup of the reader.
pub const MESSAGES_MAX: usize = 64;

/// Everything that can happen to the engine.
#[derive(Debug)]
pub enum Event {
    /// A gateway is there; messages go to it from now on. Whatever an earlier one asked for is dropped.
    Connected(mpsc::Sender<FromWorker>),
    /// A request.
    Submit(Box<Submit>),
    /// Stop a request.
    Cancel {
        /// The request.
        id: RequestId,
        /// The attempt meant.
        attempt: Attempt,
    },
    /// Answer with a `Pong`.
    Ping {
        /// To be returned.
        nonce: u64,
    },
    /// Reject what comes, finish what runs; until the next gateway.
    Drain,
    /// End the loop.
    Shutdown,
    /// The gateway is gone: drop its requests, keep the model, wait for the next.
    Disconnected,
}

/// Why the engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model or its device failed.
    #[error("forward pass failed")]
    Forward(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The model does not keep its contract.
    #[error("forward pass returned {actual} logits, expected {expected}")]
    LogitsShape {
        /// Logits returned.
        actual: usize,
        /// Rows asked for times the vocabulary.
        expected: usize,
    },
}

impl EngineError {
    /// No step can follow a failed one: the cache may be half written.
    pub fn category(&self) -> Category {
        Category::Fatal
    }
}

/// What to do after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    Stop,
}

/// The engine.
pub struct Engine<F> {
    forward: F,
    scheduler: Scheduler,
    sampler: Sampler,
    batch: Batch,
    timelines: HashMap<Rank, Timeline>,
    gateway: Option<mpsc::Sender<FromWorker>>,
    stats: EngineStats,
    memory: MemoryGauge,
    budget: StepBudget,
    activity: Arc<Activity>,
    /// What goes wrong on purpose; `None` outside tests.
    faults: Option<&'static Faults>,
}

impl<F: Forward> Engine<F> {
    /// An idle engine over a loaded model. `config.vocab_size` is replaced by the model's.
    /// `memory_used_bytes` is asked now and then for the statistics ([`resident_bytes`] on a CPU).
    pub fn new(forward: F, config: SchedulerConfig, memory_used_bytes: fn() -> u64) -> Self {
        let vocab_size = u32::try_from(forward.vocab_size()).unwrap_or(u32::MAX);
        let scheduler = Scheduler::new(SchedulerConfig { vocab_size, ..config });
        let budget = StepBudget::new(scheduler.config().step_tokens);
        Self {
            forward,
            scheduler,
            sampler: Sampler::default(),
            batch: Batch::default(),
            timelines: HashMap::new(),
            gateway: None,
            stats: EngineStats::default(),
            memory: MemoryGauge::new(memory_used_bytes),
            budget,
            activity: Arc::default(),
            faults: fault::active(),
        }
    }

    /// Tells `activity` from now on what the engine does.
    pub fn report_to(&mut self, activity: Arc<Activity>) {
        self.forward.report_to(Arc::clone(&activity));
        self.activity = activity;
    }

    /// The configuration in force, which may be tighter than the one given.
    pub fn config(&self) -> &SchedulerConfig {
        self.scheduler.config()
    }

    /// Runs until a shutdown, or until nobody can send events any more. On an error the gateway gets a `Fatal`.
    pub fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), EngineError> {
        loop {
            if self.scheduler.is_idle() {
                self.activity.enter(Phase::Idle);
                match events.blocking_recv().map(|event| self.handle(event)) {
                    Some(Next::Continue) => {}
                    Some(Next::Stop) | None => return Ok(()),
                }
            }
            // Everything that is there already, so that requests which arrive together are computed together;
            // no more than the channel holds, so that a flood of events does not keep steps from happening.
            for _ in 0..EVENTS_MAX {
                match events.try_recv().map(|event| self.handle(event)) {
                    Ok(Next::Continue) => {}
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Ok(Next::Stop) | Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            if !self.scheduler.is_idle()
                && let Err(error) = self.step()
            {
                self.send(FromWorker::Fatal { error: shared::error::one_line(&error) });
                return Err(error);
            }
        }
    }

    fn handle(&mut self, event: Event) -> Next {
        match event {
            Event::Connected(gateway) => {
                self.forget_requests();
                self.gateway = Some(gateway);
            }
            Event::Disconnected => {
                self.forget_requests();
                self.gateway = None;
            }
            Event::Submit(submit) => self.submit(*submit),
            Event::Cancel { id, attempt } => {
                if let Some((rank, sequence)) = self.scheduler.cancel(id, attempt) {
                    let timings = self.take_timings(rank, sequence.cached_tokens);
                    self.send(FromWorker::Finished { id, attempt, reason: FinishReason::Cancelled, timings });
                    self.report_rest();
                }
            }
            Event::Ping { nonce } => {
                self.refresh_stats();
                self.send(FromWorker::Pong { nonce, stats: self.stats });
            }
            Event::Drain => self.scheduler.drain(),
            Event::Shutdown => return Next::Stop,
        }
        Next::Continue
    }

    fn submit(&mut self, submit: Submit) {
        let (id, attempt) = (submit.id, submit.attempt);
        let former = self.scheduler.rank(id);
        let outcome = self.scheduler.submit(submit);
        // A newer attempt replaces the older one, whose timeline would stay behind.
        if let Some(former) = former.filter(|&rank| self.scheduler.sequence(rank).is_none()) {
            self.timelines.remove(&former);
        }
        match outcome {
            Ok(Admission::Waiting(rank)) => {
                self.timelines.insert(rank, Timeline::new(Instant::now()));
            }
            Ok(Admission::Finished(reason)) => {
                self.send(FromWorker::Finished { id, attempt, reason, timings: Timings::default() });
            }
            Err(error) => self.send(FromWorker::Rejected { id, attempt, error }),
        }
    }

    fn take_timings(&mut self, rank: Rank, cached_tokens: u32) -> Timings {
        let timeline = self.timelines.remove(&rank);
        timeline.map(|timeline| timeline.timings(Instant::now(), cached_tokens)).unwrap_or_default()
    }

    /// Hands a message to the writer, waiting for room. A writer that is gone means a gateway that is gone.
    fn send(&mut self, message: FromWorker) {
        let Some(gateway) = &self.gateway else { return };
        self.activity.enter(Phase::Reporting);
        if gateway.blocking_send(message).is_err() {
            tracing::info!("gateway is gone, its requests are dropped");
            self.forget_requests();
            self.gateway = None;
        }
    }

    fn forget_requests(&mut self) {
        self.scheduler.cancel_all();
        self.scheduler.resume();
        self.timelines.clear();
    }

    /// Tells the gateway that everything is free again. Without a step to carry them the last statistics would
    /// stand, and show sequences that are gone.
    fn report_rest(&mut self) {
        if self.scheduler.is_idle() {
            self.refresh_stats();
            self.send(FromWorker::Step { events: Vec::new(), stats: self.stats });
        }
    }

    fn refresh_stats(&mut self) {
        self.scheduler.describe(&mut self.stats);
        self.stats.memory_used_bytes = self.memory.read(Instant::now());
    }
}

#[cfg(test)]
mod tests;
