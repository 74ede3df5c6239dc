//! The worker's side of the socket: accepts gateways, shakes hands, shows load progress, then carries frames
//! between the gateway and the engine.
//!
//! `main` binds the listener, starts the thread that loads the model with a [`Loader`], and awaits [`serve`] on a
//! current-thread runtime. What holds always: a bad frame, version or peer closes its own connection only; one
//! gateway at a time is served, the newest that completed its handshake, and the one before it is closed first;
//! the engine outlives gateways. A ping is answered by the engine's thread once there is one, so that a hang shows.
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
use std::time::Duration;
use tokio::task::{JoinError, JoinSet};

/// Peers that may shake hands at the same time; more are turned away.
const HANDSHAKES_MAX: usize = 8;
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

/// Serves gateways until one asks for a shutdown, or until the model fails to load or the engine fails.
pub async fn serve(listener: Listener, device: DeviceInfo, mut loading: Loading) -> Result<(), ServeError> {
    let mut handshakes = JoinSet::new();
    let mut current: Option<Session> = None;
    let outcome = loop {
        tokio::select! {
            ended = &mut loading.ended => break ended.unwrap_or(Err(ServeError::Panicked)),
            accepted = listener.accept() => match accepted {
                Ok(connection) if handshakes.len() < HANDSHAKES_MAX => {
                    handshakes.spawn(shake_hands(connection, device.clone()));
                }
                Ok(_) => tracing::warn!(limit = HANDSHAKES_MAX, "connection refused, too many in handshake"),
                Err(error) => refuse(&error).await,
            },
            Some(greeted) = handshakes.join_next() => if let Some(connection) = admit(greeted) {
                if let Some(former) = current.take() {
                    tracing::warn!("a new gateway replaces the connected one");
                    former.close().await;
                }
                current = Some(Session::start(connection, loading.state.clone()));
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
            _ => None,
        };
        session.finish(last_words).await;
    }
    outcome
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
