//! Decides which waiting request goes to which worker next (pure). Used by `fleet::state`, which sends it there.
//!
//! Least outstanding tokens first, so that a worker with one long answer ahead is not taken for an idle one; but a
//! worker that has the beginning of the prompt in its cache is preferred as long as its lead in outstanding tokens is
//! no more than what the cache saves. A worker is handed few more requests than it computes at once: what waits in the
//! gateway can still go to whichever worker frees a place first, and is not lost with a worker.
//!
//! Suspects of one crash are spread: a worker of n sequences has at most √n of them, so that the next crash makes few
//! innocents suspects twice (√n is what makes the two rounds cost the same: Dorfman 1943). Isolated requests come
//! first, one at a time in the whole fleet, and only into an empty worker. There usually is one, since the worker that
//! crashed comes back empty; only where none is on its way back, one is given nothing new until it is empty. After an
//! isolated request has cost a worker and is to be tried again, the others come first, so that they do not starve
//! however long a worker takes to come back.

mod prefix;

pub(crate) use prefix::prefix_hashes;

use crate::ledger::{Blow, Ledger, Load, Standing, Turn};
use prefix::{CHUNK_TOKENS, PrefixTable};
use shared::ids::{RequestId, WorkerId};
use shared::ipc::message::WorkerLimits;
use std::time::Instant;

/// Requests handed to a worker beyond those it computes at once, so that a free place is filled without a round trip.
const HANDED_AHEAD_MAX: u32 = 2;

/// A worker that takes requests now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) worker: WorkerId,
    pub(crate) load: Load,
    pub(crate) places: Places,
}

/// What a worker may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) requests: usize,
    /// Of these, suspects of one crash.
    pub(crate) suspects: usize,
}

/// Whether the workers that take requests are all there will be for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// A worker is on its way back, and will be empty. One that stays away does not count for ever.
    Returning,
    /// None is.
    Complete,
}

/// Why a worker was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It has the least to do.
    Load,
    /// It has the beginning of the prompt in its cache.
    Prefix,
    /// It is empty, for an isolated request.
    Alone,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) id: RequestId,
    pub(crate) worker: WorkerId,
    pub(crate) reason: Reason,
}

/// Where requests went, as far as it decides where the next ones go.
#[derive(Debug, Default)]
pub(crate) struct Router {
    prefixes: PrefixTable,
    /// The worker that is given nothing new until it is empty, for an isolated request.
    emptying: Option<WorkerId>,
    /// An isolated request has cost a worker and will be tried again: first come the others, as many as have places.
    owes_others: bool,
}

impl Places {
    /// What a worker of these limits is handed at most.
    pub(crate) fn of(limits: &WorkerLimits) -> Self {
        let requests = limits.sequences.saturating_add(limits.waiting.min(HANDED_AHEAD_MAX));
        // A worker that announces no place at all would never be asked anything; it may then refuse for itself.
        Self { requests: requests.max(1) as usize, suspects: limits.sequences.isqrt().max(1) as usize }
    }
}

impl Candidate {
    fn has_place_for(&self, standing: Standing) -> bool {
        self.load.alone.is_none()
            && self.load.requests < self.places.requests
            && (standing != Standing::Suspect || self.load.suspects < self.places.suspects)
    }
}

impl Router {
    /// The request to hand out now and its worker, or `None` while nothing waits that has a place.
    pub(crate) fn next<C>(
        &mut self,
        ledger: &Ledger<C>,
        candidates: &[Candidate],
        outlook: Outlook,
        now: Instant,
    ) -> Option<Decision> {
        if !self.owes_others
            && let Some(decision) = self.next_isolated(ledger, candidates, outlook, now)
        {
            return Some(decision);
        }
        let decision = self.next_in_company(ledger, candidates, now);
        if decision.is_some() || !self.owes_others || candidates.is_empty() {
            return decision;
        }
        self.owes_others = false;
        self.next_isolated(ledger, candidates, outlook, now)
    }

    fn next_in_company<C>(
        &self,
        ledger: &Ledger<C>,
        candidates: &[Candidate],
        now: Instant,
    ) -> Option<Decision> {
        let mut turns = [Standing::Clear, Standing::Suspect]
            .map(|standing| ledger.next_waiting(standing, now).map(|turn| (turn, standing)));
        // None sorts first and does not matter.
        turns.sort_unstable();
        let decide = |(Turn { id, .. }, standing): (Turn, Standing)| {
            let open = |candidate: &&Candidate| {
                Some(candidate.worker) != self.emptying && candidate.has_place_for(standing)
            };
            let (worker, reason) = self.choose(ledger.prefix(id), candidates.iter().filter(open))?;
            Some(Decision { id, worker, reason })
        };
        turns.into_iter().flatten().find_map(decide)
    }

    fn next_isolated<C>(
        &mut self,
        ledger: &Ledger<C>,
        candidates: &[Candidate],
        outlook: Outlook,
        now: Instant,
    ) -> Option<Decision> {
        let turn = ledger.next_waiting(Standing::Isolated, now).filter(|_| !ledger.is_isolating());
        let Some(Turn { id, .. }) = turn else {
            self.emptying = None;
            return None;
        };
        if let Some(empty) = candidates.iter().find(|candidate| candidate.load.requests == 0) {
            self.emptying = None;
            return Some(Decision { id, worker: empty.worker, reason: Reason::Alone });
        }
        let is_there = |worker: WorkerId| candidates.iter().any(|candidate| candidate.worker == worker);
        self.emptying = match (outlook, self.emptying) {
            (Outlook::Returning, _) => None,
            // The choice is kept, for loads change and two workers taking turns would never be empty.
            (Outlook::Complete, Some(worker)) if is_there(worker) => Some(worker),
            (Outlook::Complete, _) => {
                let least = candidates.iter().min_by_key(|candidate| candidate.load.tokens);
                least.map(|candidate| candidate.worker)
            }
        };
        None
    }

    /// The best of the workers that have a place, for a prompt of these prefix hashes.
    fn choose<'a>(
        &self,
        prefix: &[u64],
        open: impl Iterator<Item = &'a Candidate> + Clone,
    ) -> Option<(WorkerId, Reason)> {
        let least = open
            .clone()
            .min_by_key(|candidate| (candidate.load.tokens, candidate.load.requests, candidate.worker))?;
        let holds = |worker: WorkerId| open.clone().find(|candidate| candidate.worker == worker);
        let cached = self.prefixes.longest(prefix, |worker| holds(worker).map(|held| held.load.tokens));
        if let Some((worker, chunks)) = cached
            && let Some(holder) = holds(worker)
            && holder.load.tokens <= least.load.tokens + (chunks * CHUNK_TOKENS) as u64
        {
            return Some((worker, Reason::Prefix));
        }
        Some((least.worker, Reason::Load))
    }

    /// A prompt of these prefix hashes was handed to `worker`, whose cache will have it.
    pub(crate) fn placed(&mut self, prefix: &[u64], worker: WorkerId) {
        self.prefixes.insert(prefix, worker);
    }

    /// The worker's process ended, and its cache with it; `blow` says what to.
    pub(crate) fn lost(&mut self, worker: WorkerId, blow: Blow) {
        self.prefixes.forget(worker);
        self.owes_others |= blow == Blow::Recurring;
    }
}

#[cfg(test)]
mod lives;
#[cfg(test)]
mod tests;
