//! A worker with the scripted model on a real socket, and a gateway's end of it.

use crate::scripted::{Faults, ScriptedModel, config};
use shared::ids::{RequestId, TokenId};
use shared::ipc::message::{DeviceInfo, EngineStats, FinishReason, ModelInfo, Rejection, Submit, TokenEvent};
use shared::ipc::transport::{self, Connection, Listener};
use shared::ipc::{FromWorker, PROTOCOL_VERSION, ToWorker};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinHandle;
use worker::engine::{Engine, resident_bytes};
use worker::ipc_server::{Loader, ServeError, loading, serve};
use worker::scheduler::SchedulerConfig;

/// No wait in these tests is longer on purpose.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server whose model is not loaded yet.
pub(crate) struct Worker {
    pub(crate) socket: PathBuf,
    pub(crate) server: JoinHandle<Result<(), ServeError>>,
    _directory: tempfile::TempDir,
}

impl Worker {
    pub(crate) fn bind() -> (Self, Loader) {
        let directory = tempfile::tempdir().unwrap();
        transport::private_directory(directory.path()).unwrap();
        let socket = directory.path().join("worker.sock");
        let listener = Listener::bind(&socket).unwrap();
        let (loader, loading) = loading();
        let server = tokio::spawn(serve(listener, device(), loading, std::future::pending()));
        (Self { socket, server, _directory: directory }, loader)
    }

    /// A server that is ready.
    pub(crate) fn start(config: SchedulerConfig, faults: Faults) -> Self {
        let (worker, loader) = Self::bind();
        run_engine(loader, config, faults);
        worker
    }

    /// One with room for everything.
    pub(crate) fn roomy() -> Self {
        Self::start(config(4096, 2048, 4), Faults::default())
    }

    pub(crate) async fn end(self) -> Result<(), ServeError> {
        tokio::time::timeout(DEADLINE, self.server).await.expect("server does not end").unwrap()
    }
}

/// Ends loading: the model is there.
pub(crate) fn run_engine(loader: Loader, config: SchedulerConfig, faults: Faults) {
    std::thread::spawn(move || {
        let model = ScriptedModel::new(&config.normalized().limits, faults);
        loader.run(model_info(), Engine::new(model, config, resident_bytes));
    });
}

fn device() -> DeviceInfo {
    DeviceInfo {
        backend: "cpu".to_owned(),
        name: "scripted".to_owned(),
        units: 1,
        memory_total_bytes: 1 << 30,
    }
}

fn model_info() -> ModelInfo {
    ModelInfo {
        architecture: "scripted".to_owned(),
        name: "hash".to_owned(),
        parameters: 0,
        quantization: "F32".to_owned(),
        vocab_size: crate::scripted::VOCAB_SIZE as u32,
        context_train: 4096,
        weight_bytes: 0,
    }
}

/// What a request got.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) end: Option<Result<FinishReason, Rejection>>,
}

/// The gateway's end of a connection.
pub(crate) struct Gateway {
    connection: Connection,
    pub(crate) answers: BTreeMap<RequestId, Answer>,
    /// Step frames with events of more than one request.
    pub(crate) shared_steps: usize,
    pub(crate) last_stats: EngineStats,
}

impl Gateway {
    /// Connects and shakes hands.
    pub(crate) async fn connect(worker: &Worker) -> Self {
        let connection = transport::connect(&worker.socket).await.unwrap();
        let mut gateway = Self {
            connection,
            answers: BTreeMap::new(),
            shared_steps: 0,
            last_stats: EngineStats::default(),
        };
        gateway.send(ToWorker::Hello { version: PROTOCOL_VERSION }).await;
        match gateway.receive().await {
            Some(FromWorker::Hello { version: PROTOCOL_VERSION, pid, .. }) => {
                assert_eq!(pid, std::process::id())
            }
            other => panic!("no hello but {other:?}"),
        }
        gateway
    }

    /// Connects and waits until the worker is ready.
    pub(crate) async fn ready(worker: &Worker) -> Self {
        let mut gateway = Self::connect(worker).await;
        gateway.until(|message| matches!(message, FromWorker::Ready { .. })).await;
        gateway
    }

    pub(crate) async fn send(&mut self, message: ToWorker) {
        self.connection.sender.write(&message).await.unwrap();
    }

    pub(crate) async fn submit(&mut self, submit: Submit) {
        self.answers.insert(submit.id, Answer::default());
        self.send(ToWorker::Submit(Box::new(submit))).await;
    }

    /// The next message, or `None` at the end of the connection.
    pub(crate) async fn receive(&mut self) -> Option<FromWorker> {
        let message = tokio::time::timeout(DEADLINE, self.connection.receiver.read()).await;
        message.expect("worker is silent").ok().flatten()
    }

    /// Receives and records messages up to one that `is_wanted`, which is returned.
    pub(crate) async fn until(&mut self, is_wanted: impl Fn(&FromWorker) -> bool) -> FromWorker {
        loop {
            let message = self.receive().await.expect("worker closed the connection");
            self.record(&message);
            if is_wanted(&message) {
                return message;
            }
        }
    }

    /// Receives until every request has ended.
    pub(crate) async fn until_all_ended(&mut self) {
        while self.answers.values().any(|answer| answer.end.is_none()) {
            self.until(|_| true).await;
        }
    }

    /// The engine's own view of itself.
    pub(crate) async fn ping(&mut self) -> EngineStats {
        self.send(ToWorker::Ping { nonce: 77 }).await;
        match self.until(|message| matches!(message, FromWorker::Pong { .. })).await {
            FromWorker::Pong { nonce: 77, stats } => stats,
            other => panic!("no pong but {other:?}"),
        }
    }

    fn record(&mut self, message: &FromWorker) {
        match message {
            FromWorker::Step { events, stats } => {
                // A report of rest after a cancel carries no step of its own.
                let is_report = events.is_empty() && stats.running + stats.waiting == 0;
                assert!(is_report || stats.step > self.last_stats.step, "step counter stands still");
                self.last_stats = *stats;
                let first = events.first().map(|event| event.id);
                self.shared_steps += usize::from(events.iter().any(|event| Some(event.id) != first));
                events.iter().for_each(|event| self.record_token(event));
            }
            FromWorker::Finished { id, reason, .. } => self.record_end(*id, Ok(*reason)),
            FromWorker::Rejected { id, error, .. } => self.record_end(*id, Err(error.clone())),
            _ => {}
        }
    }

    fn record_token(&mut self, event: &TokenEvent) {
        let answer = self.answers.get_mut(&event.id).expect("token of an unknown request");
        assert_eq!(answer.end, None, "token after the end");
        assert!(event.index as usize >= answer.tokens.len());
        answer.tokens.push(event.token);
    }

    fn record_end(&mut self, id: RequestId, end: Result<FinishReason, Rejection>) {
        let answer = self.answers.get_mut(&id).expect("end of an unknown request");
        assert_eq!(answer.end.replace(end), None, "a request ended twice");
    }
}
