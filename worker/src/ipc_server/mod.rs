//! The worker's side of the socket: accepts gateways, shakes hands, shows load progress, then carries frames
//! between the gateway and the engine.
//!
//! `main` binds the listener, starts the thread that loads the model with a [`Loader`], and awaits [`serve`] on a
//! current-thread runtime. What holds always: a bad frame, version or peer closes its own connection only; one
//! gateway at a time is served and keeps the worker until its connection ends, another that comes meanwhile is told
//! so and turned away; the engine outlives gateways. A ping is answered twice: from here at once, which shows a living
//! process, and by the engine's thread when it gets to it, which shows a living engine.
//! Deliberately absent: any state about requests.

mod handshake;
mod loader;
mod session;

pub use loader::{LoadFailure, Loader, Loading, loading};

use crate::engine::EngineError;
use handshake::{HandshakeError, shake_hands};
use session::{Session, SessionEnd};
use shared::error::{Category, ExitCode, one_line};
use shared::ipc::FromWorker;
use shared::ipc::message::DeviceInfo;
use shared::ipc::transport::{Connection, Listener, TransportError};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};

/// Peers that may shake hands at the same time; more are turned away.
const HANDSHAKES_MAX: usize = 8;
/// How long a newcomer waits for the end of a connection whose gateway may just have died. That end lies in the socket
/// already when the next gateway starts, and only has to be read.
const TAKEOVER_WAIT: Duration = Duration::from_millis(100);
/// Pause after the system refused to accept, which is usually a lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the worker ends other than by request.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadFailure),
    /// The engine cannot go on.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine's thread ended without a word: a defect.
    #[error("engine thread panicked")]
    Panicked,
}

impl ServeError {
    /// Which class the error belongs to.
    pub fn category(&self) -> Category {
        match self {
            Self::Load(failure) if failure.exit_code == ExitCode::ModelFile => Category::User,
            Self::Load(_) | Self::Engine(_) => Category::Fatal,
            Self::Panicked => Category::Internal,
        }
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Load(failure) => failure.exit_code,
            Self::Engine(_) => ExitCode::Runtime,
            Self::Panicked => ExitCode::Internal,
        }
    }
}

/// Serves gateways until one asks for a shutdown, until `told_to_end` resolves, or until the model fails to load or
/// the engine fails.
pub async fn serve(
    listener: Listener,
    device: DeviceInfo,
    mut loading: Loading,
    told_to_end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    tokio::pin!(told_to_end);
    let mut leaving = false;
    let mut handshakes = JoinSet::new();
    let mut current: Option<Session> = None;
    let outcome = loop {
        tokio::select! {
            ended = &mut loading.ended => break ended.unwrap_or(Err(ServeError::Panicked)),
            () = &mut told_to_end => {
                leaving = true;
                break Ok(());
            }
            accepted = listener.accept() => match accepted {
                Ok(connection) if handshakes.len() < HANDSHAKES_MAX => {
                    handshakes.spawn(shake_hands(connection, device.clone()));
                }
                Ok(_) => tracing::warn!(limit = HANDSHAKES_MAX, "connection refused, too many in handshake"),
                Err(error) => refuse(&error).await,
            },
            Some(greeted) = handshakes.join_next() => if let Some(connection) = admit(greeted) {
                match owner_pid(&mut current).await {
                    Owner::None => {
                        let activity = Arc::clone(&loading.activity);
                        current = Some(Session::start(connection, loading.state.clone(), activity));
                    }
                    Owner::Gateway(pid) => turn_away(connection, pid).await,
                    Owner::Shutdown => break Ok(()),
                }
            },
            end = session_end(&mut current) => {
                current = None;
                if end == SessionEnd::Shutdown {
                    break Ok(());
                }
            }
        }
    };
    if let Some(session) = current {
        // An engine that fails says so itself; for the other two nobody else is left to.
        let last_words = match &outcome {
            Err(error @ (ServeError::Load(_) | ServeError::Panicked)) => {
                Some(FromWorker::Fatal { error: one_line(error) })
            }
            Ok(()) if leaving => Some(FromWorker::Leaving),
            _ => None,
        };
        session.finish(last_words).await;
    }
    outcome
}

/// Whom the worker serves.
enum Owner {
    None,
    Gateway(Option<u32>),
    /// The last one asked for the end.
    Shutdown,
}

async fn owner_pid(current: &mut Option<Session>) -> Owner {
    let Some(session) = current else { return Owner::None };
    let pid = session.peer_pid();
    match tokio::time::timeout(TAKEOVER_WAIT, session.ended()).await {
        Err(_) => Owner::Gateway(pid),
        Ok(end) => {
            *current = None;
            if end == SessionEnd::Shutdown { Owner::Shutdown } else { Owner::None }
        }
    }
}

async fn turn_away(mut connection: Connection, owner_pid: Option<u32>) {
    tracing::warn!(peer_pid = connection.peer_pid, owner_pid, "gateway refused, another one is connected");
    // One that does not wait for the reason sees the connection close.
    let _ = connection.sender.write(&FromWorker::Busy { owner_pid }).await;
}

async fn refuse(error: &TransportError) {
    tracing::warn!(error = %one_line(error), "connection refused");
    if matches!(error, TransportError::Io { .. }) {
        tokio::time::sleep(ACCEPT_RETRY).await;
    }
}

fn admit(greeted: Result<Result<Connection, HandshakeError>, JoinError>) -> Option<Connection> {
    match greeted {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::warn!(error = %one_line(&error), "connection closed during handshake");
            None
        }
        Err(error) => {
            tracing::error!(%error, "handshake task failed");
            None
        }
    }
}

/// The end of the current session; never, while there is none.
async fn session_end(current: &mut Option<Session>) -> SessionEnd {
    match current {
        Some(session) => session.ended().await,
        None => std::future::pending().await,
    }
}
