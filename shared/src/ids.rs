//! Newtypes for the identifiers that cross a process or module border, so that none is mistaken for another.

use std::fmt;

/// A token's index in the model's vocabulary.
pub type TokenId = u32;

/// One generation as gateway and worker know it: one choice of one prompt of one HTTP request.
/// Unique over the life of a gateway process; a resubmission after a crash keeps it and raises the [`Attempt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct RequestId(pub u64);

/// How often a request has been submitted to a worker before: 0 at first, one more after each worker lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, bincode::Encode, bincode::Decode)]
pub struct Attempt(pub u32);

/// Position of a worker in the gateway's configuration, 0-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u32);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
