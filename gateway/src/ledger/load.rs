//! What one worker holds, kept in step with every placement and release by `ledger`, read by `routing` (pure).
//!
//! What always holds: a worker that has an isolated request has no other.

use super::Standing;
use shared::ids::RequestId;

/// What a worker holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) requests: usize,
    /// Prompts not yet answered and output not yet made.
    pub(crate) tokens: u64,
    /// Of the requests, suspects of one crash.
    pub(crate) suspects: usize,
    /// An isolated request that nothing else may join.
    pub(crate) alone: Option<RequestId>,
}

impl Load {
    pub(super) fn take(&mut self, id: RequestId, standing: Standing, tokens: u64) {
        self.requests += 1;
        self.tokens += tokens;
        match standing {
            Standing::Clear => {}
            Standing::Suspect => self.suspects += 1,
            Standing::Isolated => {
                debug_assert_eq!((self.requests, self.alone), (1, None), "request {id} is not alone");
                self.alone = Some(id);
            }
        }
    }

    pub(super) fn give(&mut self, standing: Standing, tokens: u64) {
        self.requests -= 1;
        self.tokens -= tokens;
        self.absolve(standing);
    }

    /// One of its requests is no longer what it was placed as.
    pub(super) fn absolve(&mut self, standing: Standing) {
        match standing {
            Standing::Clear => {}
            Standing::Suspect => self.suspects -= 1,
            Standing::Isolated => self.alone = None,
        }
    }
}
