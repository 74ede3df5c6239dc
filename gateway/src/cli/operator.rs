//! What an operator may tell a running server: signals from outside, orders through `api::admin`. Run by `serve` beside
//! the HTTP server, which ends when this does.
//!
//! SIGTERM, SIGINT and the order to drain end the server gracefully, a second signal at once. SIGHUP reads keys, limits
//! and log level again. A rolling restart goes on beside all of that.

use super::reload::Reload;
use crate::api::AdminOrder;
use crate::fleet::{Fleet, RestartError};
use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// SIGTERM, SIGINT and SIGHUP, which end nothing by themselves once this exists.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the next signal to end. A reload no longer has a point.
    pub(super) async fn end(&mut self) {
        while !matches!(self.next().await, Told::End) {}
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hang_up.recv() => Told::Reload,
        }
    }
}

/// What a signal means.
enum Told {
    End,
    Reload,
}

/// What is left of an order to end once the workers have ended.
pub(super) struct Ending {
    /// A further one ends at once.
    pub(super) signals: Signals,
    /// Answers that clients have not read to the end may go on until then.
    pub(super) until: Instant,
}

/// The one who listens to the operator.
pub(super) struct Operator {
    pub(super) signals: Signals,
    pub(super) orders: mpsc::Receiver<AdminOrder>,
    pub(super) fleet: Fleet,
    pub(super) reload: Reload,
}

impl Operator {
    /// Resolves once the process may end: it was told to, and what ran has finished. Connections stay open meanwhile,
    /// so that `/ready` says 503 and running answers go on.
    pub(super) async fn until_ended(mut self) -> Ending {
        // Restarts under way end with this.
        let mut restarts = JoinSet::new();
        loop {
            tokio::select! {
                told = self.signals.next() => match told {
                    Told::End => break,
                    Told::Reload => self.reload.run(),
                },
                Some(order) = self.orders.recv() => match order {
                    AdminOrder::Drain(answer) => {
                        self.fleet.drain();
                        // An operator who does not wait for the number has still given the order.
                        let _ = answer.send(self.in_flight());
                        break;
                    }
                    AdminOrder::RestartWorkers { grace, done } => {
                        let (fleet, grace) = (self.fleet.clone(), grace.unwrap_or(self.reload.grace()));
                        restarts.spawn(async move {
                            tracing::info!("rolling restart of the workers begins");
                            let outcome = fleet.restart_workers(grace).await;
                            match &outcome {
                                Ok(_) => tracing::info!("rolling restart of the workers is done"),
                                Err(error) => tracing::error!(%error, "rolling restart of the workers failed"),
                            }
                            let _ = done.send(outcome);
                        });
                    }
                },
                Some(_) = restarts.join_next() => {}
            }
        }
        let until = self.drain(self.reload.grace()).await;
        Ending { signals: self.signals, until }
    }

    /// Returns when the grace ends, or the present if it is not to be waited for.
    async fn drain(&mut self, grace: Duration) -> Instant {
        let until = Instant::now() + grace;
        tracing::info!(grace_s = grace.as_secs_f64(), "shutting down");
        let fleet = self.fleet.clone();
        {
            let mut shutdown = std::pin::pin!(fleet.shutdown(grace));
            loop {
                tokio::select! {
                    () = &mut shutdown => return until,
                    told = self.signals.next() => match told {
                        Told::End => break,
                        Told::Reload => self.reload.run(),
                    },
                    Some(order) = self.orders.recv() => match order {
                        AdminOrder::Drain(answer) => drop(answer.send(self.in_flight())),
                        AdminOrder::RestartWorkers { done, .. } => {
                            drop(done.send(Err(RestartError::ShuttingDown)));
                        }
                    },
                }
            }
            // The shutdown is dropped here, and kills the workers by that.
        }
        tracing::warn!("second signal, ending at once");
        fleet.shutdown(Duration::ZERO).await;
        Instant::now()
    }

    fn in_flight(&self) -> usize {
        let snapshot = self.fleet.snapshot();
        snapshot.waiting_requests
            + snapshot.workers.iter().map(|worker| worker.in_flight_requests).sum::<usize>()
    }
}
