//! What happens to requests and workers under the lock, told once the lock is free: a log line is a system call, and
//! one that blocks (a full pipe behind stderr) must not hold up anybody's tokens.
//!
//! `request_id` in these lines is the API's, from the span the request was submitted in; `sequence` is the fleet's own
//! number for one choice of it, which is also the worker's.

use shared::ids::{RequestId, WorkerId};
use tracing::Span;

/// Something worth a line.
#[derive(Debug)]
pub(super) enum Notice {
    /// A request whose worker died was handed to another one.
    Resumed { span: Span, sequence: RequestId, worker: WorkerId, attempt: u32, emitted: usize },
    /// A request runs alone since it may be what crashes workers.
    Isolated { span: Span, sequence: RequestId, worker: WorkerId, attempt: u32, emitted: usize },
    /// A suspect has shown convincing progress.
    Cleared { span: Span, sequence: RequestId },
    /// A request crashed workers and is given up.
    Poison { span: Span, sequence: RequestId, worker: WorkerId, crashes: u32 },
    /// A worker takes no messages.
    Deaf { worker: WorkerId },
}

/// Notices that are told when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Telling(pub(super) Vec<Notice>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Notice::tell);
    }
}

impl Notice {
    /// Writes the line.
    fn tell(self) {
        match self {
            Self::Resumed { span, sequence, worker, attempt, emitted } => span.in_scope(|| {
                tracing::info!(sequence = sequence.0, worker = worker.0, attempt, emitted, "request resumed")
            }),
            Self::Isolated { span, sequence, worker, attempt, emitted } => span.in_scope(|| {
                tracing::warn!(
                    sequence = sequence.0,
                    worker = worker.0,
                    attempt,
                    emitted,
                    "suspect runs alone"
                )
            }),
            Self::Cleared { span, sequence } => {
                span.in_scope(|| tracing::info!(sequence = sequence.0, "suspect cleared"));
            }
            Self::Poison { span, sequence, worker, crashes } => span.in_scope(|| {
                tracing::error!(sequence = sequence.0, worker = worker.0, crashes, "poison request given up")
            }),
            Self::Deaf { worker } => {
                tracing::warn!(worker = worker.0, "worker does not read its socket, connection dropped");
            }
        }
    }
}
