//! One gateway's connection after the handshake, as three tasks: a reader that decodes frames, a writer that
//! encodes them, and between them a driver that knows whether the model is loaded.
//!
//! What holds always: messages to the gateway pass one bounded channel, shared by driver and engine; when the
//! writer ends, that channel closes, which is how the engine learns of a dead gateway even while it waits to send.

use super::loader::{Loaded, ModelState};
use crate::activity::Activity;
use crate::engine::{Event, MESSAGES_MAX};
use crate::fault::{self, Faults};
use shared::ipc::message::{Rejection, Submit};
use shared::ipc::transport::{Connection, Receiver, Sender};
use shared::ipc::{FrameError, FromWorker, ToWorker};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Decoded messages that may wait for the driver.
const INBOUND_MAX: usize = 16;
/// Shortest time between two `Loading` messages.
const LOADING_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two heartbeats that nobody asked for; the shortest limit a gateway may set is five times that.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// Time for the last messages to reach a gateway that may not be reading.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// The connection is gone; another may come.
    Closed,
    /// The gateway asked the worker to exit while there was no engine to tell.
    Shutdown,
}

/// A running session. Ends by itself with the connection; [`Session::finish`] ends it early.
pub(super) struct Session {
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    driver: JoinHandle<SessionEnd>,
    out: mpsc::Sender<FromWorker>,
    peer_pid: Option<u32>,
}

impl Session {
    /// Starts the three tasks.
    pub(super) fn start(
        connection: Connection,
        state: watch::Receiver<ModelState>,
        activity: Arc<Activity>,
    ) -> Self {
        let (inbound_in, inbound) = mpsc::channel(INBOUND_MAX);
        let (out, outbound) = mpsc::channel(MESSAGES_MAX);
        let driver = Driver { inbound, out: out.clone(), state, activity };
        let peer_pid = connection.peer_pid;
        Self {
            reader: tokio::spawn(read_frames(connection.receiver, inbound_in)),
            writer: tokio::spawn(write_frames(connection.sender, outbound)),
            driver: tokio::spawn(driver.drive()),
            out,
            peer_pid,
        }
    }

    /// The gateway's process, where the system tells it.
    pub(super) fn peer_pid(&self) -> Option<u32> {
        self.peer_pid
    }

    /// Waits for the end. May be called again after being dropped in between.
    pub(super) async fn ended(&mut self) -> SessionEnd {
        let end = (&mut self.driver).await.unwrap_or_else(|error| {
            tracing::error!(%error, "session task failed");
            SessionEnd::Closed
        });
        self.reader.abort();
        self.writer.abort();
        end
    }

    /// Ends the session after its engine, once what is queued has been written, `last_words` at the end.
    pub(super) async fn finish(self, last_words: Option<FromWorker>) {
        self.driver.abort();
        let _ = self.driver.await;
        let flush = async {
            if let Some(message) = last_words {
                let _ = self.out.send(message).await;
            }
            // The writer ends when the last sender is gone.
            drop(self.out);
            let _ = self.writer.await;
        };
        if tokio::time::timeout(FLUSH_TIMEOUT, flush).await.is_err() {
            tracing::warn!("gateway does not read, the last messages are lost");
        }
        self.reader.abort();
    }
}

async fn read_frames(mut receiver: Receiver, inbound: mpsc::Sender<ToWorker>) {
    loop {
        match receiver.read().await {
            Ok(Some(message)) => {
                if inbound.send(message).await.is_err() {
                    return;
                }
            }
            Ok(None) => return tracing::info!("gateway closed the connection"),
            Err(error) => return report(&error),
        }
    }
}

async fn write_frames(mut sender: Sender, mut outbound: mpsc::Receiver<FromWorker>) {
    while let Some(message) = outbound.recv().await {
        if fault::active().is_some_and(Faults::take_corruption) {
            sender.queue_damaged();
        }
        // Nothing counts after it, and the engine may go on for a while.
        let mut is_last = message == FromWorker::Leaving;
        let mut queued = sender.queue(&message);
        // Whatever else is there goes out in the same write; the channel's size bounds the buffer.
        for _ in 0..MESSAGES_MAX {
            let Ok(message) = outbound.try_recv() else { break };
            is_last |= message == FromWorker::Leaving;
            queued = queued.and_then(|()| sender.queue(&message));
        }
        let sent = match queued {
            Ok(()) => sender.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            return report(&error);
        }
        if is_last {
            return;
        }
    }
}

fn report(error: &FrameError) {
    tracing::warn!(error = %shared::error::one_line(error), "connection to the gateway is closed");
}

/// What a message during loading leads to.
enum Reply {
    Nothing,
    Send(FromWorker),
    End(SessionEnd),
}

struct Driver {
    inbound: mpsc::Receiver<ToWorker>,
    out: mpsc::Sender<FromWorker>,
    state: watch::Receiver<ModelState>,
    activity: Arc<Activity>,
}

impl Driver {
    async fn drive(mut self) -> SessionEnd {
        let mut is_draining = false;
        let loaded = match self.wait_for_model(&mut is_draining).await {
            Ok(loaded) => loaded,
            Err(end) => return end,
        };
        let ready = FromWorker::Ready { model: loaded.model.clone(), limits: loaded.limits };
        let mut events = vec![Event::Connected(self.out.clone())];
        events.extend(is_draining.then_some(Event::Drain));
        if self.out.send(ready).await.is_err() {
            return SessionEnd::Closed;
        }
        for event in events {
            if loaded.events.send(event).await.is_err() {
                return SessionEnd::Closed;
            }
        }
        self.carry(&loaded).await;
        // An engine that is gone needs no notice.
        let _ = loaded.events.send(Event::Disconnected).await;
        SessionEnd::Closed
    }

    /// Shows progress and answers what can be answered, until there is a model.
    async fn wait_for_model(&mut self, is_draining: &mut bool) -> Result<Arc<Loaded>, SessionEnd> {
        let mut announced: Option<Instant> = None;
        loop {
            let state = self.state.borrow_and_update().clone();
            match state {
                ModelState::Ready(loaded) => return Ok(loaded),
                ModelState::Loading { done_bytes, total_bytes } => {
                    if announced.is_none_or(|at| at.elapsed() >= LOADING_INTERVAL) {
                        announced = Some(Instant::now());
                        self.send(FromWorker::Loading { done_bytes, total_bytes }).await?;
                    }
                }
            }
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() {
                    // The loader has failed; the server ends and closes this session with the reason.
                    std::future::pending::<()>().await;
                },
                message = self.inbound.recv() => match self.answer_while_loading(message, is_draining) {
                    Reply::Nothing => {}
                    Reply::Send(message) => self.send(message).await?,
                    Reply::End(end) => return Err(end),
                },
            }
        }
    }

    async fn send(&self, message: FromWorker) -> Result<(), SessionEnd> {
        self.out.send(message).await.map_err(|_| SessionEnd::Closed)
    }

    /// Hands messages to the engine until the connection or the engine ends.
    async fn carry(&mut self, loaded: &Loaded) {
        loop {
            let message = tokio::select! {
                message = self.inbound.recv() => message,
                () = self.out.closed() => None,
            };
            let event = match message {
                Some(ToWorker::Submit(submit)) => Event::Submit(submit),
                Some(ToWorker::Cancel { id, attempt }) => Event::Cancel { id, attempt },
                Some(ToWorker::Ping { nonce }) => {
                    // From here, since the engine may be in a long step; it adds its own answer after that.
                    // A channel without room shows by itself that there are answers.
                    let _ = self.out.try_send(self.heartbeat());
                    Event::Ping { nonce }
                }
                Some(ToWorker::Drain) => Event::Drain,
                Some(ToWorker::Shutdown) => Event::Shutdown,
                Some(ToWorker::Hello { .. }) => return tracing::warn!("gateway sent a second hello"),
                None => return,
            };
            if self.hand_over(&loaded.events, event).await.is_err() {
                return;
            }
        }
    }

    /// Gives the engine an event as soon as it has room. Pings cannot be read meanwhile, so what the engine does is
    /// told unasked: a long step before a full channel is no hang.
    async fn hand_over(&self, events: &mpsc::Sender<Event>, event: Event) -> Result<(), SendError<()>> {
        loop {
            tokio::select! {
                biased;
                permit = events.reserve() => return permit.map(|permit| permit.send(event)),
                () = tokio::time::sleep(HEARTBEAT_INTERVAL) => drop(self.out.try_send(self.heartbeat())),
            }
        }
    }

    fn heartbeat(&self) -> FromWorker {
        let (phase, progress) = self.activity.read();
        FromWorker::Heartbeat { phase, progress }
    }

    fn answer_while_loading(&self, message: Option<ToWorker>, is_draining: &mut bool) -> Reply {
        match message {
            Some(ToWorker::Ping { .. }) => Reply::Send(self.heartbeat()),
            Some(ToWorker::Submit(submit)) => {
                let Submit { id, attempt, .. } = *submit;
                // No room at all is what a worker without a model has.
                let error = Rejection::Overloaded { waiting: 0, limit: 0 };
                Reply::Send(FromWorker::Rejected { id, attempt, error })
            }
            Some(ToWorker::Drain) => {
                *is_draining = true;
                Reply::Nothing
            }
            Some(ToWorker::Cancel { .. }) => Reply::Nothing,
            Some(ToWorker::Shutdown) => Reply::End(SessionEnd::Shutdown),
            Some(ToWorker::Hello { .. }) | None => Reply::End(SessionEnd::Closed),
        }
    }
}
