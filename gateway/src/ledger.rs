//! Every request in flight: its prompt, what was emitted, and which worker has it (pure: events and time in, decisions
//! out). Used by `fleet::core`, which owns the consumers' channels as the opaque `C`.
//!
//! This is the whole state of a request, so a worker's death costs nothing but time: the request goes back to waiting
//! and is submitted again with what was emitted. What holds always: a consumer gets each index exactly once and in
//! order, then exactly one outcome; events of an older attempt or another worker are dropped; an index out of order is
//! a protocol error of the worker; a request is in one place only, waiting or in one worker. It does not route, admit
//! or send.

use crate::admission::Waiting;
use shared::error::Category;
use shared::ids::{Attempt, RequestId, TokenId, WorkerId};
use shared::ipc::message::{FinishReason, Rejection, RequestLimits, Submit, TokenEvent};
use shared::sampling::SamplingParams;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Why a request that was taken failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The request's own deadline passed.
    #[error("deadline of {deadline_ms} ms passed after {emitted} tokens")]
    Deadline {
        /// What the request allowed.
        deadline_ms: u64,
        /// Tokens delivered until then.
        emitted: usize,
    },
    /// No worker had a place within the queue timeout.
    #[error("no worker had a place within {waited_ms} ms")]
    QueueTimeout {
        /// How long it waited.
        waited_ms: u64,
    },
    /// The worker refused it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Its workers kept crashing.
    #[error("worker crashed {crashes} times while it ran this request, the last time: {last}")]
    WorkerCrashed {
        /// How often.
        crashes: u32,
        /// How the last one ended.
        last: String,
    },
    /// Every worker failed while it waited.
    #[error("no worker can serve: {reason}")]
    NoWorker {
        /// The first worker's failure.
        reason: String,
    },
    /// Its consumer stopped reading.
    #[error("client left {unread} tokens unread, limit {limit}")]
    SlowConsumer {
        /// Tokens waiting for the client.
        unread: usize,
        /// Most that may.
        limit: usize,
    },
    /// The gateway shut down before it was done.
    #[error("gateway is shutting down")]
    ShuttingDown,
}

impl RequestError {
    /// Who can do something about it.
    pub fn category(&self) -> Category {
        match self {
            Self::Rejected(Rejection::TooLong { .. } | Rejection::Invalid { .. })
            | Self::SlowConsumer { .. } => Category::User,
            Self::Rejected(Rejection::Internal { .. }) | Self::WorkerCrashed { .. } => Category::Internal,
            _ => Category::Recoverable,
        }
    }

    /// A stable word for the API's `code` field and for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Deadline { .. } => "deadline_exceeded",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::Rejected(Rejection::TooLong { .. }) => "context_length_exceeded",
            Self::Rejected(Rejection::Invalid { .. }) => "invalid_request",
            Self::Rejected(Rejection::Internal { .. }) => "engine_error",
            Self::Rejected(Rejection::Overloaded { .. } | Rejection::Draining) => "overloaded",
            Self::WorkerCrashed { .. } => "worker_crashed",
            Self::NoWorker { .. } => "no_worker",
            Self::SlowConsumer { .. } => "slow_client",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// What a request asks, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) sampling: SamplingParams,
    pub(crate) limits: RequestLimits,
    /// Most tokens the output can have in any worker; for counting, `limits` decide.
    pub(crate) output_tokens_max: u32,
}

/// When a request is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From admission to its first place in a worker.
    pub(crate) queue: Duration,
    /// From admission to its last token.
    pub(crate) total: Duration,
}

/// A request inside a worker; the address of a `Cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) worker: WorkerId,
    pub(crate) attempt: Attempt,
}

/// A request that ended without its worker saying so: tell the consumer, and the worker if it has it.
#[derive(Debug)]
pub(crate) struct Ended<C> {
    pub(crate) id: RequestId,
    pub(crate) consumer: C,
    pub(crate) outcome: Result<FinishReason, RequestError>,
    pub(crate) submissions: u32,
    pub(crate) placement: Option<Placement>,
}

/// What to do with one token event.
#[derive(Debug, PartialEq)]
pub(crate) enum TokenVerdict<'a, C> {
    /// Hand it to the consumer.
    Deliver(&'a C),
    /// Of an older attempt, or of a request that is gone.
    Stale,
    /// The worker broke the protocol.
    Broken(String),
}

/// What a worker holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    /// Prompts not yet answered and output not yet made.
    pub(crate) tokens: u64,
}

#[derive(Debug)]
struct Entry<C> {
    work: Work,
    emitted: Vec<TokenId>,
    placement: Option<Placement>,
    /// Tokens this request adds to its worker's load.
    load_tokens: u64,
    submissions: u32,
    crashes: u32,
    admitted: Instant,
    patience: Patience,
    expiry: Instant,
    consumer: C,
}

/// The requests in flight over a fixed number of workers.
#[derive(Debug)]
pub(crate) struct Ledger<C> {
    entries: HashMap<RequestId, Entry<C>>,
    /// Smaller priority first, then older first; a resumed request thus comes before everything newer.
    waiting: BTreeSet<(i32, RequestId)>,
    waiting_tokens: u64,
    expiries: BTreeSet<(Instant, RequestId)>,
    loads: Vec<Load>,
}

impl<C> Entry<C> {
    /// Tokens the worker would compute if it got the request now.
    fn cost(&self) -> u64 {
        let output = (self.work.output_tokens_max as usize).saturating_sub(self.emitted.len());
        (self.work.prompt.len() + self.emitted.len() + output) as u64
    }

    /// Why the output is complete already, where a worker died between its last token and saying so.
    fn complete(&self) -> Option<FinishReason> {
        let limits = &self.work.limits;
        let last = self.emitted.last()?;
        if limits.stop_tokens.contains(last) {
            return Some(FinishReason::Stop);
        }
        (self.emitted.len() >= limits.max_tokens as usize).then_some(FinishReason::Length)
    }
}

impl<C> Ledger<C> {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            entries: HashMap::new(),
            waiting: BTreeSet::new(),
            waiting_tokens: 0,
            expiries: BTreeSet::new(),
            loads: vec![Load::default(); workers],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn waiting(&self) -> Waiting {
        Waiting { requests: self.waiting.len(), tokens: self.waiting_tokens }
    }

    pub(crate) fn load(&self, worker: WorkerId) -> Load {
        self.loads.get(worker.0 as usize).copied().unwrap_or_default()
    }

    /// Takes a request; it waits. `id` must be new.
    pub(crate) fn admit(&mut self, id: RequestId, work: Work, patience: Patience, consumer: C, now: Instant) {
        let expiry = now + patience.queue.min(patience.total);
        let entry = Entry {
            work,
            emitted: Vec::new(),
            placement: None,
            load_tokens: 0,
            submissions: 0,
            crashes: 0,
            admitted: now,
            patience,
            expiry,
            consumer,
        };
        self.waiting.insert((entry.work.limits.priority, id));
        self.waiting_tokens += entry.cost();
        self.expiries.insert((expiry, id));
        let before = self.entries.insert(id, entry);
        debug_assert!(before.is_none(), "request id {id} used twice");
    }

    /// The request whose turn it is.
    pub(crate) fn next_waiting(&self) -> Option<RequestId> {
        self.waiting.first().map(|&(_, id)| id)
    }

    /// Puts a waiting request into `worker`; returns the message that does so, or `None` if it does not wait.
    pub(crate) fn assign(&mut self, id: RequestId, worker: WorkerId) -> Option<Submit> {
        let entry = self.entries.get_mut(&id)?;
        if entry.placement.is_some() {
            return None;
        }
        let load = self.loads.get_mut(worker.0 as usize)?;
        self.waiting.remove(&(entry.work.limits.priority, id));
        self.waiting_tokens -= entry.cost();
        let attempt = Attempt(entry.submissions);
        entry.submissions += 1;
        entry.placement = Some(Placement { worker, attempt });
        entry.load_tokens = entry.cost();
        load.requests += 1;
        load.tokens += entry.load_tokens;
        // Once it had a place, only its own deadline counts.
        self.expiries.remove(&(entry.expiry, id));
        entry.expiry = entry.admitted + entry.patience.total;
        self.expiries.insert((entry.expiry, id));
        Some(Submit {
            id,
            attempt,
            prompt: entry.work.prompt.clone(),
            emitted: entry.emitted.clone(),
            sampling: entry.work.sampling.clone(),
            limits: entry.work.limits.clone(),
        })
    }

    /// Takes one token from `worker`.
    pub(crate) fn token(&mut self, worker: WorkerId, event: &TokenEvent) -> TokenVerdict<'_, C> {
        let Some(entry) = self.entries.get_mut(&event.id) else { return TokenVerdict::Stale };
        if entry.placement != Some(Placement { worker, attempt: event.attempt }) {
            return TokenVerdict::Stale;
        }
        let expected = entry.emitted.len();
        if event.index as usize != expected {
            let (id, index) = (event.id, event.index);
            return TokenVerdict::Broken(format!(
                "request {id} got token index {index}, expected {expected}"
            ));
        }
        if expected >= entry.work.limits.max_tokens as usize {
            let (id, limit) = (event.id, entry.work.limits.max_tokens);
            return TokenVerdict::Broken(format!(
                "request {id} got token index {expected}, limit {limit} tokens"
            ));
        }
        entry.emitted.push(event.token);
        // The first token of an attempt says that everything before it has been computed.
        let left = (entry.work.output_tokens_max as usize).saturating_sub(entry.emitted.len()) as u64;
        let load = &mut self.loads[worker.0 as usize];
        load.tokens -= entry.load_tokens - left.min(entry.load_tokens);
        entry.load_tokens = left.min(entry.load_tokens);
        TokenVerdict::Deliver(&entry.consumer)
    }

    /// The worker says that the request is done. `None` if stale. A cancel nobody here asked for puts the request back
    /// to waiting: the worker is being ended by somebody else.
    pub(crate) fn finish(
        &mut self,
        from: (WorkerId, RequestId, Attempt),
        reason: FinishReason,
    ) -> Option<Ended<C>> {
        let (worker, id, attempt) = from;
        let entry = self.entries.get(&id)?;
        if entry.placement != Some(Placement { worker, attempt }) {
            return None;
        }
        if reason == FinishReason::Cancelled {
            return self.put_back(id);
        }
        self.end(id, Ok(reason)).map(|ended| Ended { placement: None, ..ended })
    }

    /// The worker did not take the request. Where another may, or the same one later, it waits again (`None`).
    pub(crate) fn reject(
        &mut self,
        from: (WorkerId, RequestId, Attempt),
        error: Rejection,
    ) -> Option<Ended<C>> {
        let (worker, id, attempt) = from;
        let entry = self.entries.get(&id)?;
        if entry.placement != Some(Placement { worker, attempt }) {
            return None;
        }
        let outcome = match error {
            Rejection::Overloaded { .. } | Rejection::Draining => return self.put_back(id),
            // The context filled up in an earlier attempt, which died before it could say so.
            Rejection::TooLong { .. } if !entry.emitted.is_empty() => Ok(FinishReason::Length),
            error => Err(RequestError::Rejected(error)),
        };
        self.end(id, outcome).map(|ended| Ended { placement: None, ..ended })
    }

    /// The worker is gone: everything it held waits again, except what is complete or has crashed workers too often.
    pub(crate) fn release(
        &mut self,
        worker: WorkerId,
        crash: Option<&str>,
        crashes_max: u32,
    ) -> Vec<Ended<C>> {
        let held = |entry: &Entry<C>| entry.placement.is_some_and(|placement| placement.worker == worker);
        let mut ids: Vec<RequestId> =
            self.entries.iter().filter(|(_, entry)| held(entry)).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        let mut ended = Vec::new();
        for id in ids {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.crashes += u32::from(crash.is_some());
            let crashes = entry.crashes;
            match crash {
                Some(last) if crashes >= crashes_max && entry.complete().is_none() => {
                    let error = RequestError::WorkerCrashed { crashes, last: last.to_owned() };
                    ended.extend(self.end(id, Err(error)));
                }
                _ => ended.extend(self.put_back(id)),
            }
        }
        for one in &mut ended {
            one.placement = None;
        }
        ended
    }

    /// Removes a request whose consumer is gone or too slow; tells where it is so that the worker can be told.
    pub(crate) fn remove(&mut self, id: RequestId) -> Option<(C, Option<Placement>)> {
        self.end(id, Ok(FinishReason::Cancelled)).map(|ended| (ended.consumer, ended.placement))
    }

    /// Ends every request whose time is up at `now`.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Ended<C>> {
        let mut ended = Vec::new();
        while let Some(&(expiry, id)) = self.expiries.first() {
            if expiry > now {
                break;
            }
            let Some(entry) = self.entries.get(&id) else {
                debug_assert!(false, "request {id} expires but does not exist");
                self.expiries.remove(&(expiry, id));
                continue;
            };
            let error = if entry.submissions == 0 && entry.patience.queue < entry.patience.total {
                RequestError::QueueTimeout {
                    waited_ms: millis(now.saturating_duration_since(entry.admitted)),
                }
            } else {
                RequestError::Deadline {
                    deadline_ms: millis(entry.patience.total),
                    emitted: entry.emitted.len(),
                }
            };
            ended.extend(self.end(id, Err(error)));
        }
        ended
    }

    /// Ends every waiting request with `error`.
    pub(crate) fn fail_waiting(&mut self, error: &RequestError) -> Vec<Ended<C>> {
        let ids: Vec<RequestId> = self.waiting.iter().map(|&(_, id)| id).collect();
        ids.into_iter().filter_map(|id| self.end(id, Err(error.clone()))).collect()
    }

    /// Ends every request with `error`.
    pub(crate) fn fail_all(&mut self, error: &RequestError) -> Vec<Ended<C>> {
        let mut ids: Vec<RequestId> = self.entries.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| self.end(id, Err(error.clone()))).collect()
    }

    /// Takes a request out of its worker; it waits, unless its output is complete.
    fn put_back(&mut self, id: RequestId) -> Option<Ended<C>> {
        let complete = self.entries.get(&id)?.complete();
        if let Some(reason) = complete {
            return self.end(id, Ok(reason)).map(|ended| Ended { placement: None, ..ended });
        }
        let entry = self.entries.get_mut(&id)?;
        if let Some(placement) = entry.placement.take() {
            let load = &mut self.loads[placement.worker.0 as usize];
            load.requests -= 1;
            load.tokens -= entry.load_tokens;
            self.waiting.insert((entry.work.limits.priority, id));
            self.waiting_tokens += entry.cost();
        }
        None
    }

    fn end(&mut self, id: RequestId, outcome: Result<FinishReason, RequestError>) -> Option<Ended<C>> {
        let entry = self.entries.remove(&id)?;
        self.expiries.remove(&(entry.expiry, id));
        match entry.placement {
            Some(placement) => {
                let load = &mut self.loads[placement.worker.0 as usize];
                load.requests -= 1;
                load.tokens -= entry.load_tokens;
            }
            None => {
                self.waiting.remove(&(entry.work.limits.priority, id));
                self.waiting_tokens -= entry.cost();
            }
        }
        Some(Ended {
            id,
            consumer: entry.consumer,
            outcome,
            submissions: entry.submissions,
            placement: entry.placement,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
