//! Every request in flight: its prompt, what was emitted, and which worker has it (pure: events and time in, decisions
//! out). Used by `fleet::core`, which owns the consumers' channels as the opaque `C`, and read by `routing`.
//!
//! This is the whole state of a request, so a worker's death costs nothing but time: the request goes back to waiting
//! and is submitted again with what was emitted, and with what the death says about it (`suspicion`). What holds
//! always: a consumer gets each index exactly once and in order, then exactly one outcome; events of an older attempt
//! or another worker are dropped; an index out of order is a protocol error of the worker; a request is in one place
//! only, waiting or in one worker; a worker that was given an isolated request has no other. A token costs one look-up
//! and no allocation of its own. It does not route, admit or send.

mod error;
mod id_hash;
mod load;
mod queue;
mod suspicion;

pub use error::RequestError;
pub(crate) use load::Load;
pub(crate) use queue::Turn;
pub(crate) use suspicion::{Death, Standing};

use crate::admission::Waiting;
use id_hash::IdHash;
use queue::Queue;
use shared::ids::{Attempt, RequestId, TokenId, WorkerId};
use shared::ipc::message::{FinishReason, Rejection, RequestLimits, Submit, TokenEvent};
use shared::sampling::SamplingParams;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};
use suspicion::{Judgement, Suspicion};

/// What a request asks, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) prompt: Vec<TokenId>,
    /// Hashes of the prompt's beginnings, from `routing::prefix_hashes`.
    pub(crate) prefix: Vec<u64>,
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

/// What became of a dead worker's requests.
#[derive(Debug)]
pub(crate) struct Released<C> {
    /// Those that are over: complete, or poison.
    pub(crate) ended: Vec<Ended<C>>,
    /// Those that wait again.
    pub(crate) resumed: usize,
    /// Of these, requests that became suspects.
    pub(crate) suspected: usize,
    pub(crate) blow: Blow,
}

/// Whether a worker's death may come again for the same reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    Single,
    /// It ran an isolated request, which will be tried again.
    Recurring,
}

/// A suspect that has shown convincing progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cleared {
    pub(crate) id: RequestId,
    /// What it was placed as until now.
    pub(crate) was: Standing,
}

#[derive(Debug)]
struct Entry<C> {
    work: Work,
    emitted: Vec<TokenId>,
    placement: Option<Placement>,
    /// What it was placed as, or waits as.
    standing: Standing,
    suspicion: Suspicion,
    /// Not tried before, while isolated.
    due: Instant,
    /// Tokens emitted before its present attempt.
    run_start: usize,
    /// Tokens this request adds to its worker's load.
    load_tokens: u64,
    submissions: u32,
    admitted: Instant,
    patience: Patience,
    expiry: Instant,
    consumer: C,
}

/// The requests in flight over a fixed number of workers.
#[derive(Debug)]
pub(crate) struct Ledger<C> {
    entries: HashMap<RequestId, Entry<C>, IdHash>,
    queue: Queue,
    expiries: BTreeSet<(Instant, RequestId)>,
    loads: Vec<Load>,
    /// Not yet taken by [`Self::take_cleared`].
    cleared: Vec<Cleared>,
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

    fn turn(&self, id: RequestId) -> Turn {
        Turn { priority: self.work.limits.priority, id }
    }
}

impl<C> Ledger<C> {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            entries: HashMap::default(),
            queue: Queue::default(),
            expiries: BTreeSet::new(),
            loads: vec![Load::default(); workers],
            cleared: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn waiting(&self) -> Waiting {
        self.queue.waiting()
    }

    pub(crate) fn load(&self, worker: WorkerId) -> Load {
        self.loads.get(worker.0 as usize).copied().unwrap_or_default()
    }

    /// Whether a request runs alone in some worker.
    pub(crate) fn is_isolating(&self) -> bool {
        self.loads.iter().any(|load| load.alone.is_some())
    }

    /// Hashes of the beginnings of a request's prompt.
    pub(crate) fn prefix(&self, id: RequestId) -> &[u64] {
        self.entries.get(&id).map_or(&[], |entry| &entry.work.prefix)
    }

    pub(crate) fn consumer(&self, id: RequestId) -> Option<&C> {
        self.entries.get(&id).map(|entry| &entry.consumer)
    }

    /// Takes a request; it waits. `id` must be new.
    pub(crate) fn admit(&mut self, id: RequestId, work: Work, patience: Patience, consumer: C, now: Instant) {
        let expiry = now + patience.queue.min(patience.total);
        let entry = Entry {
            work,
            emitted: Vec::new(),
            placement: None,
            standing: Standing::Clear,
            suspicion: Suspicion::default(),
            due: now,
            run_start: 0,
            load_tokens: 0,
            submissions: 0,
            admitted: now,
            patience,
            expiry,
            consumer,
        };
        self.queue.insert(entry.turn(id), entry.standing, entry.due, entry.cost());
        self.expiries.insert((expiry, id));
        let before = self.entries.insert(id, entry);
        debug_assert!(before.is_none(), "request id {id} used twice");
    }

    /// The waiting request of this standing whose turn it is.
    pub(crate) fn next_waiting(&self, standing: Standing, now: Instant) -> Option<Turn> {
        self.queue.first(standing, now)
    }

    /// Puts a waiting request into `worker`; returns the message that does so, or `None` if it does not wait.
    pub(crate) fn assign(&mut self, id: RequestId, worker: WorkerId) -> Option<Submit> {
        let entry = self.entries.get_mut(&id)?;
        if entry.placement.is_some() {
            return None;
        }
        let load = self.loads.get_mut(worker.0 as usize)?;
        self.queue.remove(entry.turn(id), entry.standing, entry.due, entry.cost());
        let attempt = Attempt(entry.submissions);
        entry.submissions += 1;
        entry.placement = Some(Placement { worker, attempt });
        entry.run_start = entry.emitted.len();
        entry.load_tokens = entry.cost();
        load.take(id, entry.standing, entry.load_tokens);
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
        if entry.suspicion.is_disproved_by(entry.emitted.len() - entry.run_start) {
            entry.suspicion.clear();
            let was = std::mem::replace(&mut entry.standing, Standing::Clear);
            load.absolve(was);
            if was != Standing::Clear {
                self.cleared.push(Cleared { id: event.id, was });
            }
        }
        TokenVerdict::Deliver(&entry.consumer)
    }

    /// The suspects cleared since the last call.
    pub(crate) fn take_cleared(&mut self) -> Vec<Cleared> {
        std::mem::take(&mut self.cleared)
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

    /// Takes a request out of its worker though that one is well; it waits again, unless its output is complete. Tells
    /// where it was.
    pub(crate) fn recall(&mut self, id: RequestId) -> Option<(Placement, Option<Ended<C>>)> {
        let placement = self.entries.get(&id)?.placement?;
        Some((placement, self.put_back(id)))
    }

    /// The worker is gone: everything it held waits again, except what is complete or is poison.
    ///
    /// All of it counts as having run. A worker is handed at most two requests more than it computes, and whether it
    /// had begun with these nobody can tell any more; suspecting one too many costs less than missing the one.
    pub(crate) fn release(&mut self, worker: WorkerId, death: Death<'_>, now: Instant) -> Released<C> {
        let held = |entry: &Entry<C>| entry.placement.is_some_and(|placement| placement.worker == worker);
        let mut ids: Vec<RequestId> =
            self.entries.iter().filter(|(_, entry)| held(entry)).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        let mut released = Released { ended: Vec::new(), resumed: 0, suspected: 0, blow: Blow::Single };
        for id in ids {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            let was_alone = entry.standing == Standing::Isolated;
            let was_clear = entry.suspicion.standing() == Standing::Clear;
            let run_tokens = entry.emitted.len() - entry.run_start;
            let judgement = entry.suspicion.died(death, entry.standing, run_tokens);
            let is_suspected = was_clear && entry.suspicion.standing() != Standing::Clear;
            let ended = match (judgement, death) {
                (Judgement::Poison(crashes), Death::Crash(last)) if entry.complete().is_none() => {
                    let error = RequestError::Poison { crashes, last: last.to_owned() };
                    self.end(id, Err(error))
                }
                (Judgement::Retry(wait), _) => {
                    entry.due = now + wait;
                    self.put_back(id)
                }
                (Judgement::Poison(_), _) => self.put_back(id),
            };
            match ended {
                Some(ended) => released.ended.push(Ended { placement: None, ..ended }),
                None => {
                    released.resumed += 1;
                    released.suspected += usize::from(is_suspected);
                    if was_alone && death != Death::Ordered {
                        released.blow = Blow::Recurring;
                    }
                }
            }
        }
        released
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
        self.queue.ids().into_iter().filter_map(|id| self.end(id, Err(error.clone()))).collect()
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
            self.loads[placement.worker.0 as usize].give(entry.standing, entry.load_tokens);
            entry.standing = entry.suspicion.standing();
            self.queue.insert(entry.turn(id), entry.standing, entry.due, entry.cost());
        }
        None
    }

    fn end(&mut self, id: RequestId, outcome: Result<FinishReason, RequestError>) -> Option<Ended<C>> {
        let entry = self.entries.remove(&id)?;
        self.expiries.remove(&(entry.expiry, id));
        match entry.placement {
            Some(placement) => {
                self.loads[placement.worker.0 as usize].give(entry.standing, entry.load_tokens);
            }
            None => self.queue.remove(entry.turn(id), entry.standing, entry.due, entry.cost()),
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
