//! Decides which worker gets the next request (pure). Used by `fleet::core`.
//!
//! Least outstanding tokens first, so that a worker with one long answer ahead is not taken for an idle one. A worker
//! is handed few more requests than it computes at once: what waits in the gateway can still go to whichever worker
//! frees a place first, and is not lost with a worker. Affinity for cached prefixes joins here later.

use shared::ids::WorkerId;
use shared::ipc::message::WorkerLimits;

/// Requests handed to a worker beyond those it computes at once, so that a free place is filled without a round trip.
const HANDED_AHEAD_MAX: u32 = 2;

/// A ready worker, as routing sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The worker.
    pub(crate) worker: WorkerId,
    /// Requests it holds.
    pub(crate) requests: usize,
    /// Tokens these may still cost.
    pub(crate) outstanding_tokens: u64,
    /// Requests it may hold, from [`places`].
    pub(crate) places: usize,
}

/// Requests a worker of these limits is handed at most.
pub(crate) fn places(limits: &WorkerLimits) -> usize {
    let places = limits.sequences.saturating_add(limits.waiting.min(HANDED_AHEAD_MAX));
    // A worker that announces no place at all would never be asked anything; it may then refuse for itself.
    places.max(1) as usize
}

/// The worker to take the next request, or `None` while none has a place.
pub(crate) fn choose(candidates: impl Iterator<Item = Candidate>) -> Option<WorkerId> {
    candidates
        .filter(|candidate| candidate.requests < candidate.places)
        .min_by_key(|candidate| (candidate.outstanding_tokens, candidate.requests, candidate.worker))
        .map(|candidate| candidate.worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(candidates: &[(usize, u64, usize)], expected: Option<u32>) {
        let candidates =
            candidates.iter().enumerate().map(|(index, &(requests, outstanding_tokens, places))| Candidate {
                worker: WorkerId(index as u32),
                requests,
                outstanding_tokens,
                places,
            });
        assert_eq!(choose(candidates).map(|worker| worker.0), expected);
    }

    #[test]
    fn the_least_outstanding_tokens_win_among_workers_with_a_place() {
        check(&[], None);
        check(&[(0, 0, 4), (0, 0, 4)], Some(0));
        check(&[(1, 500, 4), (3, 100, 4)], Some(1));
        check(&[(1, 500, 4), (4, 100, 4)], Some(0));
        check(&[(4, 500, 4), (4, 100, 4)], None);
        check(&[(2, 100, 4), (1, 100, 4)], Some(1));
    }

    #[test]
    fn a_worker_is_handed_little_more_than_it_computes() {
        let limits = |sequences, waiting| WorkerLimits {
            context_tokens: 1,
            sequences,
            waiting,
            kv_blocks: 1,
            kv_block_tokens: 1,
        };
        assert_eq!(places(&limits(16, 1000)), 18);
        assert_eq!(places(&limits(16, 1)), 17);
        assert_eq!(places(&limits(0, 0)), 1);
        assert_eq!(places(&limits(u32::MAX, 9)), u32::MAX as usize);
    }
}
