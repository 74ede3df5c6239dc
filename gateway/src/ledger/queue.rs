//! What waits for a worker, in the order in which it is served (pure). Used by `ledger`.
//!
//! Smaller priority first, then older first, so that a resumed request comes before everything newer. Suspects have
//! an order of their own, since they may have to wait for one another while others go on. Isolated requests are served
//! as they become due, so that one that costs a worker each time lets all others go first.

use super::suspicion::Standing;
use crate::admission::Waiting;
use shared::ids::RequestId;
use std::collections::BTreeSet;
use std::time::Instant;

/// A request's place in the order: smaller first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    pub(crate) priority: i32,
    pub(crate) id: RequestId,
}

/// The waiting requests.
#[derive(Debug, Default)]
pub(super) struct Queue {
    clear: BTreeSet<Turn>,
    suspects: BTreeSet<Turn>,
    /// With the instant before which they are not tried.
    isolated: BTreeSet<(Instant, Turn)>,
    tokens: u64,
}

impl Queue {
    pub(super) fn waiting(&self) -> Waiting {
        let requests = self.clear.len() + self.suspects.len() + self.isolated.len();
        Waiting { requests, tokens: self.tokens }
    }

    /// Takes a request of `tokens`; an isolated one is not tried before `due`.
    pub(super) fn insert(&mut self, turn: Turn, standing: Standing, due: Instant, tokens: u64) {
        self.tokens += tokens;
        let is_new = match standing {
            Standing::Clear => self.clear.insert(turn),
            Standing::Suspect => self.suspects.insert(turn),
            Standing::Isolated => self.isolated.insert((due, turn)),
        };
        debug_assert!(is_new, "request {} waits twice", turn.id);
    }

    /// Takes a request out, described as at its insertion.
    pub(super) fn remove(&mut self, turn: Turn, standing: Standing, due: Instant, tokens: u64) {
        let is_there = match standing {
            Standing::Clear => self.clear.remove(&turn),
            Standing::Suspect => self.suspects.remove(&turn),
            Standing::Isolated => self.isolated.remove(&(due, turn)),
        };
        debug_assert!(is_there, "request {} does not wait", turn.id);
        self.tokens -= tokens;
    }

    /// The request of this standing whose turn it is.
    pub(super) fn first(&self, standing: Standing, now: Instant) -> Option<Turn> {
        match standing {
            Standing::Clear => self.clear.first().copied(),
            Standing::Suspect => self.suspects.first().copied(),
            Standing::Isolated => self.isolated.first().filter(|(due, _)| *due <= now).map(|(_, turn)| *turn),
        }
    }

    /// Every waiting request.
    pub(super) fn ids(&self) -> Vec<RequestId> {
        let isolated = self.isolated.iter().map(|(_, turn)| turn);
        let turns = self.clear.iter().chain(&self.suspects).chain(isolated);
        turns.map(|turn| turn.id).collect()
    }
}
