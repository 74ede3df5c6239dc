//! The rolling restart: one worker after the other gets a fresh process while the fleet goes on serving. Called by the
//! server on an operator's order.
//!
//! What holds always: at most one worker is away because of it; the next one's turn comes only when the one before
//! serves again; requests are never failed by it. While another worker serves, a worker finishes what it has within the
//! grace; the only one that serves hands its requests over at once, since they would have to wait for it in any case.
//! What is not finished goes on elsewhere, or in the new process, with the same tokens. Attached workers are left to
//! their service manager.

use super::keeper::Order;
use super::snapshot::WorkerState;
use super::{Fleet, Kind};
use shared::ids::WorkerId;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Why a rolling restart did not go through; workers before the one named have been restarted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestartError {
    /// One at a time.
    #[error("a rolling restart is under way")]
    UnderWay,
    /// There is no point.
    #[error("gateway is shutting down")]
    ShuttingDown,
    /// The worker does not come up, so the others stay as they are.
    #[error("{reason}; the workers after it were not restarted")]
    Failed {
        /// The worker's own description.
        reason: String,
    },
}

/// What a rolling restart has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restarted {
    /// Workers with a fresh process, and how long each was away.
    pub workers: Vec<(WorkerId, Duration)>,
    /// Workers left alone, since another runs them.
    pub attached: Vec<WorkerId>,
}

impl Fleet {
    /// Gives every managed worker a fresh process, one after the other; returns when the last one serves.
    pub async fn restart_workers(&self, grace: Duration) -> Result<Restarted, RestartError> {
        let _only = self.inner.rolling.try_lock().map_err(|_| RestartError::UnderWay)?;
        let keepers: Vec<(Kind, mpsc::Sender<Order>)> = {
            let keepers = self.inner.keepers.lock().unwrap_or_else(PoisonError::into_inner);
            keepers.iter().map(|keeper| (keeper.kind, keeper.orders.clone())).collect()
        };
        if keepers.is_empty() {
            return Err(RestartError::ShuttingDown);
        }
        let mut done = Restarted::default();
        for (index, (kind, orders)) in keepers.into_iter().enumerate() {
            let id = WorkerId(index as u32);
            match kind {
                Kind::Attached => done.attached.push(id),
                Kind::Managed => done.workers.push((id, self.restart(index, &orders, grace).await?)),
            }
        }
        Ok(done)
    }

    /// Restarts one worker and waits until it serves; says how long it did not.
    async fn restart(
        &self,
        index: usize,
        orders: &mpsc::Sender<Order>,
        grace: Duration,
    ) -> Result<Duration, RestartError> {
        let mut changes = self.watch();
        let before = self.snapshot();
        let others = before.workers.iter().enumerate();
        let is_needed =
            !others.into_iter().any(|(other, worker)| other != index && worker.state == WorkerState::Ready);
        let grace = if is_needed { Duration::ZERO } else { grace };
        orders.send(Order::Restart(grace)).await.map_err(|_| RestartError::ShuttingDown)?;
        let mut away_since = Instant::now();
        loop {
            let now = self.snapshot();
            let worker = &now.workers[index];
            if now.draining {
                return Err(RestartError::ShuttingDown);
            }
            let is_fresh = worker.restarts > before.workers[index].restarts;
            match worker.state {
                WorkerState::Ready if is_fresh => return Ok(away_since.elapsed()),
                WorkerState::Failed if is_fresh => {
                    return Err(RestartError::Failed { reason: worker.describe() });
                }
                // It still finishes what it has.
                WorkerState::Draining | WorkerState::Ready => away_since = Instant::now(),
                _ => {}
            }
            if changes.changed().await.is_err() {
                return Err(RestartError::ShuttingDown);
            }
        }
    }
}
