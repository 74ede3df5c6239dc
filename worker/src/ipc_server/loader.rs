//! The thread that loads the model and then runs the engine, as the server sees it.

use super::ServeError;
use crate::activity::Activity;
use crate::batch::Forward;
use crate::engine::{EVENTS_MAX, Engine, Event};
use shared::error::ExitCode;
use shared::ipc::message::{ModelInfo, WorkerLimits};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// A model that could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadFailure {
    /// One line.
    pub message: String,
    /// What the process should exit with.
    pub exit_code: ExitCode,
}

/// Where loading stands.
#[derive(Debug, Clone)]
pub(super) enum ModelState {
    Loading { done_bytes: u64, total_bytes: u64 },
    Ready(Arc<Loaded>),
}

/// A model that serves.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) model: ModelInfo,
    pub(super) limits: WorkerLimits,
    pub(super) events: mpsc::Sender<Event>,
}

/// The loading thread's end: tell progress, then end with [`Loader::run`] or [`Loader::fail`]. Dropping it
/// otherwise (a panic) ends the server with an internal error.
#[derive(Debug)]
pub struct Loader {
    activity: Arc<Activity>,
    state: watch::Sender<ModelState>,
    ended: oneshot::Sender<Result<(), ServeError>>,
}

/// The server's end.
#[derive(Debug)]
pub struct Loading {
    pub(super) activity: Arc<Activity>,
    pub(super) state: watch::Receiver<ModelState>,
    pub(super) ended: oneshot::Receiver<Result<(), ServeError>>,
}

/// The two ends.
pub fn loading() -> (Loader, Loading) {
    let (state_in, state) = watch::channel(ModelState::Loading { done_bytes: 0, total_bytes: 0 });
    let (ended_in, ended) = oneshot::channel();
    let activity = Arc::new(Activity::default());
    let loader = Loader { activity: Arc::clone(&activity), state: state_in, ended: ended_in };
    (loader, Loading { activity, state, ended })
}

impl Loader {
    /// Tells how far loading is. Cheap: call it as often as convenient, gateways hear of it at a bounded rate.
    pub fn progress(&self, done_bytes: u64, total_bytes: u64) {
        self.activity.advance();
        self.state.send_replace(ModelState::Loading { done_bytes, total_bytes });
    }

    /// Ends the server with this failure.
    pub fn fail(self, failure: LoadFailure) {
        // No receiver means that the server has ended before.
        let _ = self.ended.send(Err(failure.into()));
    }

    /// Announces the model as ready and runs its engine on this thread until it ends.
    pub fn run<F: Forward>(self, model: ModelInfo, mut engine: Engine<F>) {
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let limits = engine.config().limits;
        let Self { activity, state, ended } = self;
        engine.report_to(activity);
        state.send_replace(ModelState::Ready(Arc::new(Loaded { model, limits, events: events_in })));
        // Kept here, the state would hold a sender of the engine's own events, and it could not end with the server.
        drop(state);
        let outcome = engine.run(events);
        let _ = ended.send(outcome.map_err(ServeError::from));
    }
}
