//! A server whose tokens come from a script, and a client for it.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use gateway::api::{ApiSettings, ApiState, BodyLimits};
use gateway::fleet::{
    FleetEvent, FleetSnapshot, RequestError, SubmitError, TokenRequest, WorkerSnapshot, WorkerState,
};
use gateway::generation::TokenSource;
use gateway::metrics;
use gateway::prompt::model::TextModel;
use gateway::prompt::template::{CHATML, Clock};
use gateway::server::{RouterOptions, router};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use shared::ids::WorkerId;
use shared::ipc::message::{EngineStats, FinishReason, Timings, TokenLogprobs, WorkerLimits};
use shared::tokenizer::{RoleIds, Tokenizer, VocabularySource};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tower::ServiceExt;

/// Id of the end token; byte `b` has the id `FIRST_BYTE + b`.
pub(crate) const EOS: u32 = 2;
pub(crate) const FIRST_BYTE: u32 = 3;
pub(crate) const CONTEXT_TOKENS: u32 = 512;

/// What the source does with each request.
#[derive(Debug, Clone)]
pub(crate) enum Script {
    /// These bytes, one token each, then the end token.
    Says(&'static str),
    /// These bytes, then the error.
    Fails(&'static str, RequestError),
    /// These bytes once told so, then the end token.
    SaysWhenTold(&'static str, Arc<Notify>),
    /// Nothing ever.
    Hangs,
    /// Not taken.
    Refuses(SubmitError),
    /// A defect.
    Panics,
}

pub(crate) struct Scripted {
    script: Script,
    pub(crate) state: Mutex<WorkerState>,
    pub(crate) requests: Mutex<Vec<TokenRequest>>,
    /// Streams alive.
    pub(crate) open: Arc<AtomicUsize>,
}

/// Counts a stream as open while it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Scripted {
    fn events(&self, request: &TokenRequest) -> Vec<FleetEvent> {
        let (text, error) = match &self.script {
            Script::Says(text) | Script::SaysWhenTold(text, _) => (text, None),
            Script::Fails(text, error) => (text, Some(error.clone())),
            Script::Hangs | Script::Refuses(_) | Script::Panics => (&"", None),
        };
        let event = |token: u32| {
            let top = |k: u32| (0..k).map(|n| (FIRST_BYTE + u32::from(b'a') + n, -1.5 - n as f32)).collect();
            let logprobs = request.sampling.logprobs.map(|k| TokenLogprobs { logprob: -0.5, top: top(k) });
            FleetEvent::Token(token, logprobs)
        };
        let bytes = text.bytes().map(|byte| FIRST_BYTE + u32::from(byte));
        let ends = request.limits.stop_tokens.contains(&EOS);
        let max = request.limits.max_tokens as usize;
        let mut tokens: Vec<u32> =
            if ends { bytes.chain([EOS]).collect() } else { bytes.cycle().take(max).collect() };
        let reason = if tokens.len() > max || !ends { FinishReason::Length } else { FinishReason::Stop };
        tokens.truncate(max);
        let last = match error {
            Some(error) => FleetEvent::Failed(error),
            None => FleetEvent::Finished { reason, timings: Timings::default(), attempts: 1 },
        };
        tokens.into_iter().map(event).chain([last]).collect()
    }
}

impl TokenSource for Scripted {
    fn submit(&self, request: TokenRequest) -> Result<BoxStream<'static, FleetEvent>, SubmitError> {
        if let Script::Refuses(error) = &self.script {
            return Err(error.clone());
        }
        assert!(!matches!(self.script, Script::Panics), "the scripted defect");
        let events = self.events(&request);
        self.requests.lock().unwrap().push(request);
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&self.open));
        let alive = move |event| {
            let _ = &open;
            event
        };
        Ok(match &self.script {
            Script::Hangs => stream::pending().map(alive).boxed(),
            Script::SaysWhenTold(_, told) => {
                let told = Arc::clone(told);
                let wait = async move { told.notified().await };
                stream::once(wait).flat_map(move |()| stream::iter(events.clone())).map(alive).boxed()
            }
            _ => stream::iter(events).map(alive).boxed(),
        })
    }

    fn room(&self) -> Result<(), SubmitError> {
        match &self.script {
            Script::Refuses(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn snapshot(&self) -> FleetSnapshot {
        let limits = WorkerLimits {
            context_tokens: CONTEXT_TOKENS,
            sequences: 8,
            waiting: 8,
            kv_blocks: 64,
            kv_block_tokens: 16,
        };
        let worker = WorkerSnapshot {
            id: WorkerId(0),
            pid: Some(1),
            device: None,
            state: *self.state.lock().unwrap(),
            restarts: 0,
            last_exit: None,
            loading: None,
            model: None,
            limits: Some(limits),
            stats: EngineStats { running: 3, ..EngineStats::default() },
            in_flight_requests: 0,
            in_flight_tokens: 0,
        };
        FleetSnapshot {
            workers: vec![worker],
            waiting_requests: 5,
            waiting_tokens: 50,
            draining: false,
            queue_full: false,
        }
    }
}

/// A vocabulary of the 256 bytes and an end token.
fn tokenizer() -> Tokenizer {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let special = ["<unk>", "<s>", "</s>"];
    let tokens: Vec<&str> = special.into_iter().chain(bytes.iter().map(String::as_str)).collect();
    let source = VocabularySource {
        model: "llama",
        scores: vec![0.0; tokens.len()],
        token_types: [2, 3, 3].into_iter().chain([6; 256]).collect(),
        roles: RoleIds { bos: Some(1), eos: Some(EOS), unknown: Some(0), ..RoleIds::default() },
        add_bos: Some(false),
        add_space_prefix: Some(false),
        tokens,
        ..VocabularySource::default()
    };
    Tokenizer::new(&source).unwrap()
}

pub(crate) struct Server {
    router: Router,
    pub(crate) source: Arc<Scripted>,
}

/// An answer read whole.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The data of each event.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }

    /// The chunks of a stream, which must end with `[DONE]`.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!((self.status, self.header("content-type")), (200, "text/event-stream"), "{}", self.text);
        let events = self.events();
        let (last, chunks) = events.split_last().unwrap();
        assert_eq!(*last, "[DONE]");
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }

    /// The error object, with all four keys.
    pub(crate) fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "no {key} in {}", self.text);
        }
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        assert!(error["code"].is_string() || error["code"].is_null(), "{error}");
        error
    }
}

impl Server {
    pub(crate) fn new(script: Script) -> Self {
        Self::with_options(script, &RouterOptions::default())
    }

    pub(crate) fn with_options(script: Script, options: &RouterOptions) -> Self {
        let source = Arc::new(Scripted {
            script,
            state: Mutex::new(WorkerState::Ready),
            requests: Mutex::default(),
            open: Arc::default(),
        });
        let model = Arc::new(TextModel::new(tokenizer(), CHATML, Clock::System).unwrap());
        let settings = ApiSettings {
            model_id: "tiny".to_owned(),
            context_tokens: None,
            request_timeout: Duration::from_secs(60),
            bodies: BodyLimits { bytes: 1 << 20, bytes_total: 4 << 20, timeout: Duration::from_secs(60) },
            preparations: 2,
        };
        let state = Arc::new(ApiState::new(source.clone(), model, settings, metrics::install().unwrap()));
        Self { router: router(state, options), source }
    }

    pub(crate) fn into_router(self) -> Router {
        self.router
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.send(request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.ask(Request::post(path).body(body.into()).unwrap()).await
    }

    pub(crate) async fn chat(&self, fields: Value) -> Answer {
        let base = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]});
        self.post("/v1/chat/completions", merged(base, fields).to_string()).await
    }

    pub(crate) async fn complete(&self, fields: Value) -> Answer {
        let base = json!({"model": "tiny", "prompt": "Hi", "max_tokens": 100});
        self.post("/v1/completions", merged(base, fields).to_string()).await
    }

    /// The requests the source took.
    pub(crate) fn taken(&self) -> Vec<TokenRequest> {
        self.source.requests.lock().unwrap().clone()
    }
}

fn merged(mut base: Value, fields: Value) -> Value {
    base.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    base
}
