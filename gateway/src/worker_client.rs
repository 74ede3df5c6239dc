//! One connection to one worker: connects, shakes hands, writes what is queued, reads what comes. Run by
//! `fleet::keeper`, one task per life of the worker.
//!
//! Messages about requests go to a function given by the caller, which must not block; messages about the worker's own
//! life go to the keeper as [`Report`]s. What holds always: the last report is one [`Report::Lost`]; the queue of
//! outgoing messages is bounded by its maker; a frame that does not decode ends the connection and nothing else.

use crate::supervisor::machine::Loss;
use shared::error::one_line;
use shared::ipc::PROTOCOL_VERSION;
use shared::ipc::frame::FrameError;
use shared::ipc::message::{DeviceInfo, FromWorker, ModelInfo, Phase, ToWorker, WorkerLimits};
use shared::ipc::transport::{Connection, Receiver, Sender, TransportError, connect};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;

/// Messages that may wait for the socket to take them. A worker that reads never lets them wait for more than a step.
pub(crate) const OUTBOUND_MESSAGES_MAX: usize = 4096;
/// First pause between two tries to connect; doubles up to [`CONNECT_PAUSE_MAX`].
const CONNECT_PAUSE_FIRST: Duration = Duration::from_millis(2);
/// Longest pause between two tries to connect.
const CONNECT_PAUSE_MAX: Duration = Duration::from_millis(50);
/// Messages written to the socket together.
const WRITE_BATCH_MESSAGES: usize = 64;
/// Bytes after which a batch is written though more messages wait: long prompts add up.
const WRITE_BATCH_BYTES: usize = 1 << 20;

/// What a worker says about itself.
#[derive(Debug)]
pub(crate) enum Report {
    /// Its answer to the handshake. `own_pid` is there only if the system names the same process as its peer.
    Hello { version: u32, own_pid: Option<u32>, device: DeviceInfo },
    /// What its engine is doing, and its count of progress.
    Heartbeat { phase: Phase, progress: u64 },
    /// The model loads.
    Loading { done_bytes: u64, total_bytes: u64 },
    /// The model is loaded.
    Ready { model: ModelInfo, limits: WorkerLimits },
    /// The connection is over.
    Lost(Loss),
}

/// Where messages about requests go.
pub(crate) struct Sink<M, U> {
    /// Takes a message of the worker; an error means that it breaks the protocol.
    pub(crate) message: M,
    /// Told of a message of ours that cannot be encoded.
    pub(crate) unsendable: U,
}

/// How long a worker that does not listen is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until the task is aborted: the process was started a moment ago.
    Boundless,
    /// Not at all: the caller tries again in its own time.
    OneTry,
}

/// Connects to `path`, then serves the connection until it ends or the task is aborted.
pub(crate) async fn run<M, U>(
    path: &Path,
    patience: Patience,
    outbound: mpsc::Receiver<ToWorker>,
    sink: Sink<M, U>,
    reports: mpsc::Sender<Report>,
) where
    M: Fn(FromWorker) -> Result<(), String>,
    U: Fn(&ToWorker, String),
{
    let connected = match patience {
        Patience::Boundless => connect_patiently(path).await,
        Patience::OneTry => connect(path).await,
    };
    let loss = match connected {
        Ok(Connection { receiver, sender, peer_pid }) => {
            let reader = Reader { receiver, peer_pid, reports: &reports };
            tokio::select! {
                loss = reader.read(sink.message) => loss,
                loss = write(sender, outbound, sink.unsendable) => loss,
            }
        }
        Err(error @ TransportError::Io { .. }) => Loss::Fatal(one_line(&error)),
        Err(error) => Loss::Protocol(one_line(&error)),
    };
    // The keeper may be gone already, and then nobody wants to know.
    let _ = reports.send(Report::Lost(loss)).await;
}

/// Tries until the socket is there; the caller's handshake deadline ends it. Only a peer that cannot be trusted is
/// an error.
async fn connect_patiently(path: &Path) -> Result<Connection, TransportError> {
    let mut pause = CONNECT_PAUSE_FIRST;
    loop {
        match connect(path).await {
            Err(TransportError::Io { .. }) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(CONNECT_PAUSE_MAX);
            }
            outcome => return outcome,
        }
    }
}

async fn write(
    mut sender: Sender,
    mut outbound: mpsc::Receiver<ToWorker>,
    unsendable: impl Fn(&ToWorker, String),
) -> Loss {
    if sender.write(&ToWorker::Hello { version: PROTOCOL_VERSION }).await.is_err() {
        return Loss::Closed;
    }
    let mut batch = Vec::with_capacity(WRITE_BATCH_MESSAGES);
    loop {
        batch.clear();
        if outbound.recv_many(&mut batch, WRITE_BATCH_MESSAGES).await == 0 {
            return Loss::Protocol("worker does not read its socket".to_owned());
        }
        for message in &batch {
            if let Err(error) = sender.queue(message) {
                unsendable(message, one_line(&error));
            }
            if sender.queued_bytes() >= WRITE_BATCH_BYTES && sender.flush().await.is_err() {
                return Loss::Closed;
            }
        }
        if sender.flush().await.is_err() {
            return Loss::Closed;
        }
    }
}

/// The reading half.
struct Reader<'a> {
    receiver: Receiver,
    peer_pid: Option<u32>,
    reports: &'a mpsc::Sender<Report>,
}

impl Reader<'_> {
    /// Hands on what comes until nothing does.
    async fn read(mut self, on_message: impl Fn(FromWorker) -> Result<(), String>) -> Loss {
        loop {
            let report = match self.receiver.read::<FromWorker>().await {
                Ok(Some(FromWorker::Hello { version, pid, device })) => {
                    // They differ where the worker runs in another container, and then its id means nothing here.
                    let own_pid = self.peer_pid.filter(|peer| *peer == pid);
                    Report::Hello { version, own_pid, device }
                }
                Ok(Some(FromWorker::Loading { done_bytes, total_bytes })) => {
                    Report::Loading { done_bytes, total_bytes }
                }
                Ok(Some(FromWorker::Ready { model, limits })) => Report::Ready { model, limits },
                Ok(Some(FromWorker::Heartbeat { phase, progress })) => Report::Heartbeat { phase, progress },
                Ok(Some(FromWorker::Fatal { error })) => return Loss::Fatal(error),
                Ok(Some(FromWorker::Leaving)) => return Loss::Left,
                Ok(Some(FromWorker::Busy { owner_pid })) => return Loss::Busy(owner_pid),
                Ok(Some(message)) => {
                    if let Err(reason) = on_message(message) {
                        return Loss::Protocol(reason);
                    }
                    continue;
                }
                Ok(None) | Err(FrameError::Io(_) | FrameError::Truncated { .. }) => return Loss::Closed,
                Err(error) => return Loss::Protocol(one_line(&error)),
            };
            if self.reports.send(report).await.is_err() {
                return Loss::Closed;
            }
        }
    }
}
