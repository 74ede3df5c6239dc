//! Why a request that was taken failed: what `api` turns into a status and a code.

use shared::error::Category;
use shared::ipc::message::Rejection;

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
    /// It crashes whatever worker computes it, alone as well.
    #[error("request crashed {crashes} workers, the last one while it ran alone: {last}")]
    Poison {
        /// How many, without convincing progress in between.
        crashes: u32,
        /// How the last one ended.
        last: String,
    },
    /// Every worker failed for good while it waited.
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
            Self::Rejected(Rejection::Internal { .. }) | Self::Poison { .. } => Category::Internal,
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
            Self::Poison { .. } => "poison_request",
            Self::NoWorker { .. } => "no_worker",
            Self::SlowConsumer { .. } => "slow_client",
            Self::ShuttingDown => "shutting_down",
        }
    }
}
