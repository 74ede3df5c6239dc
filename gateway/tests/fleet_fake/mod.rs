//! A fleet over scripted workers, and what tests ask of it.

pub(crate) mod worker;

use futures_util::StreamExt;
use gateway::fleet::*;
use shared::ids::TokenId;
use shared::ipc::message::{FinishReason, RequestLimits, TokenLogprobs};
use shared::sampling::SamplingParams;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Beyond this, a test has failed; it is long because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A fleet whose workers share one script and one directory of notes.
pub(crate) struct Scene {
    pub(crate) fleet: Fleet,
    pub(crate) notes: tempfile::TempDir,
    pub(crate) run_dir: PathBuf,
    _parent: tempfile::TempDir,
}

/// What a scene is made of.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) script: &'static str,
    pub(crate) workers: usize,
    pub(crate) step_ms: u64,
    pub(crate) timing: SupervisorTiming,
    pub(crate) queue: QueueLimits,
}

impl Setup {
    pub(crate) fn new(script: &'static str) -> Self {
        let timing = SupervisorTiming {
            ping_interval: Duration::from_millis(50),
            backoff_first: Duration::from_millis(10),
            backoff_max: Duration::from_millis(100),
            exit_grace: Duration::from_secs(5),
            ..SupervisorTiming::default()
        };
        Self { script, workers: 1, step_ms: 1, timing, queue: QueueLimits::default() }
    }

    pub(crate) fn start(self) -> Scene {
        let notes = tempfile::tempdir().expect("notes");
        let parent = tempfile::tempdir().expect("parent of the run directory");
        let pair = |name: &str, value: OsString| (OsString::from(name), value);
        let worker = WorkerConfig {
            program: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fleet_fake/worker.sh"),
            args: vec!["--device".into(), "cpu".into()],
            env: vec![
                pair("FAKE_WORKER_EXECUTABLE", std::env::current_exe().expect("own path").into()),
                pair("FAKE_WORKER_SCRIPT", self.script.into()),
                pair("FAKE_WORKER_NOTES", notes.path().into()),
                pair("FAKE_WORKER_STEP_MS", self.step_ms.to_string().into()),
            ],
        };
        let run_dir = parent.path().join("run");
        let config = FleetConfig {
            run_dir: run_dir.clone(),
            timing: self.timing,
            queue: self.queue,
            ..FleetConfig::new(vec![worker; self.workers])
        };
        Scene { fleet: Fleet::start(config).expect("starts"), notes, run_dir, _parent: parent }
    }
}

impl Scene {
    /// Waits until `done` holds for a snapshot, and returns that one.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&FleetSnapshot) -> bool) -> FleetSnapshot {
        let end = Instant::now() + PATIENCE;
        loop {
            let snapshot = self.fleet.snapshot();
            if done(&snapshot) {
                return snapshot;
            }
            assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}, now {snapshot:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn ready(&self) -> FleetSnapshot {
        let all = |snapshot: &FleetSnapshot| snapshot.workers.iter().all(|w| w.state == WorkerState::Ready);
        self.until("workers ready", all).await
    }

    /// Waits until the workers have noted a line that starts with `start`.
    pub(crate) async fn noted(&self, start: &str) {
        self.until(&format!("note `{start}`"), |_| self.notes().lines().any(|line| line.starts_with(start)))
            .await;
    }

    pub(crate) fn notes(&self) -> String {
        worker::read_notes(self.notes.path())
    }

    /// Process ids of all lives so far.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.notes().lines().filter_map(|line| line.strip_prefix("started ")?.parse().ok()).collect()
    }

    pub(crate) fn pid(&self, worker: usize) -> i32 {
        self.fleet.snapshot().workers[worker].pid.expect("has a process") as i32
    }

    /// Sends a request and waits for its end.
    pub(crate) async fn complete(&self, request: TokenRequest) -> Outcome {
        collect(self.fleet.submit(request).expect("taken")).await
    }
}

/// What a request came to.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<TokenId>,
    /// Of each token for which they came.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) end: Result<FinishReason, RequestError>,
    pub(crate) attempts: u32,
}

pub(crate) fn request(prompt: &[TokenId], max_tokens: u32) -> TokenRequest {
    TokenRequest {
        prompt: prompt.to_vec(),
        sampling: SamplingParams::greedy(),
        limits: RequestLimits { max_tokens, min_tokens: 0, stop_tokens: Vec::new(), priority: 0 },
        deadline: PATIENCE,
    }
}

/// The tokens a faithful worker gives.
pub(crate) fn expected(prompt: &[TokenId], max_tokens: u32) -> Vec<TokenId> {
    (0..max_tokens as usize).map(|index| worker::token_at(prompt, index)).collect()
}

/// Reads a stream to its end, which must be one terminal event and then nothing.
pub(crate) async fn collect(mut stream: TokenStream) -> Outcome {
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    let reading = async {
        loop {
            match stream.next().await.expect("a terminal event before the end") {
                FleetEvent::Token(token, scores) => {
                    tokens.push(token);
                    logprobs.extend(scores);
                }
                FleetEvent::Finished { reason, attempts, .. } => break (Ok(reason), attempts),
                FleetEvent::Failed(error) => break (Err(error), 0),
            }
        }
    };
    let (end, attempts) = tokio::time::timeout(PATIENCE * 2, reading).await.expect("ends in time");
    assert_eq!(stream.next().await, None, "nothing after the terminal event");
    Outcome { tokens, logprobs, end, attempts }
}

/// Whether a process of this id is there (a zombie counts).
pub(crate) fn is_alive(pid: i32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok()
}

pub(crate) fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("signal");
}
