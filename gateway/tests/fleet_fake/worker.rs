//! A scripted worker: the protocol over a real socket in a real process, with arithmetic in place of a model.
//!
//! `FAKE_WORKER_SCRIPT` says how it misbehaves, `FAKE_WORKER_NOTES` is a directory where it writes one line per thing
//! worth knowing (`notes`) and from which it counts its lives.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::frame::encode_frame;
use shared::ipc::message::*;
use shared::ipc::{FrameReader, PROTOCOL_VERSION};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// A prompt that starts with this token makes the worker abort when it computes it.
pub(crate) const POISON: TokenId = 666;
/// The same once it has emitted as many tokens as the prompt's second token says.
pub(crate) const POISON_LATE: TokenId = 667;
/// A prompt that starts with this token makes the worker hang.
pub(crate) const POISON_HANG: TokenId = 668;
/// A prompt that starts with this token makes the kernel kill the worker, as for lack of memory.
pub(crate) const MEMORY_EATER: TokenId = 669;
/// Sequences the fake worker says it computes at once.
pub(crate) const SEQUENCES: u32 = 4;
/// Its context.
pub(crate) const CONTEXT_TOKENS: u32 = 100_000;

/// The token a request of this prompt gets at `index`, whatever happens around it.
pub(crate) fn token_at(prompt: &[TokenId], index: usize) -> TokenId {
    let sum: u32 = prompt.iter().fold(7, |sum, token| sum.wrapping_mul(31).wrapping_add(*token));
    sum.wrapping_add(index as u32 * 17) % 50_000
}

/// The log probabilities that go with it.
pub(crate) fn logprobs_at(prompt: &[TokenId], index: usize, top: u32) -> TokenLogprobs {
    let token = token_at(prompt, index);
    let top = (0..top).map(|rank| (token + rank, -0.5 - (index + rank as usize) as f32)).collect();
    TokenLogprobs { logprob: -0.5 - index as f32, top }
}

/// How the worker misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Script {
    Faithful,
    /// Waits for the file `go` before it is ready.
    SlowLoad,
    WrongVersion,
    BadModel,
    /// In its first life, after five tokens of a request.
    FirstGarbage,
    FirstGap,
    FirstHang,
    /// The engine alone: its process goes on telling that it stands still.
    FirstStuck,
    /// Ignores SIGTERM.
    Stubborn,
}

struct Worker {
    script: Script,
    notes: PathBuf,
    first_life: bool,
    step_pause: Duration,
    jobs: Vec<Submit>,
    step: u64,
}

/// The body of the test `fake_worker`: returns at once unless it runs as a worker.
pub(crate) fn main() {
    let Some(socket) = std::env::var_os("FAKE_WORKER_SOCKET") else { return };
    // A test that fails must not leave processes behind.
    set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let notes = PathBuf::from(std::env::var_os("FAKE_WORKER_NOTES").expect("notes directory"));
    let script = match std::env::var("FAKE_WORKER_SCRIPT").as_deref() {
        Ok("slow_load") => Script::SlowLoad,
        Ok("wrong_version") => Script::WrongVersion,
        Ok("bad_model") => Script::BadModel,
        Ok("first_garbage") => Script::FirstGarbage,
        Ok("first_gap") => Script::FirstGap,
        Ok("first_hang") => Script::FirstHang,
        Ok("first_stuck") => Script::FirstStuck,
        Ok("stubborn") => Script::Stubborn,
        _ => Script::Faithful,
    };
    let pause_ms = std::env::var("FAKE_WORKER_STEP_MS").map_or(1, |text| text.parse().expect("a number"));
    let first_life = !read_notes(&notes).contains("started");
    let mut worker = Worker {
        script,
        notes,
        first_life,
        step_pause: Duration::from_millis(pause_ms),
        jobs: Vec::new(),
        step: 0,
    };
    worker.note(&format!("started {}", std::process::id()));
    if script == Script::BadModel {
        eprintln!("reading model");
        eprintln!("model.gguf: gguf magic is wrong");
        std::process::exit(65);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(worker.serve(Path::new(&socket)));
    std::process::exit(0);
}

/// What the fake worker wrote so far, over all its lives.
pub(crate) fn read_notes(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("notes")).unwrap_or_default()
}

impl Worker {
    fn note(&self, line: &str) {
        let path = self.notes.join("notes");
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("notes file");
        // In one write, since several workers append to the file at once.
        file.write_all(format!("{line}\n").as_bytes()).expect("note");
    }

    async fn serve(&mut self, socket: &Path) {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signal");
        let listener = tokio::net::UnixListener::bind(socket).expect("bind");
        let (stream, _) = listener.accept().await.expect("accept");
        let (read, mut write) = stream.into_split();
        let (messages, mut inbox) = mpsc::unbounded_channel();
        tokio::spawn(read_messages(read, messages));
        loop {
            let idle = self.jobs.is_empty();
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message, &mut write).await,
                    None => return,
                },
                _ = terminate.recv() => {
                    self.note("sigterm");
                    if self.script != Script::Stubborn {
                        return;
                    }
                }
                () = tokio::time::sleep(self.step_pause), if !idle => self.advance(&mut write).await,
            }
        }
    }

    async fn take(&mut self, message: ToWorker, write: &mut OwnedWriteHalf) {
        match message {
            ToWorker::Hello { .. } => self.introduce(write).await,
            ToWorker::Submit(submit) => {
                self.note(&format!("submit {} {} {}", submit.id, submit.attempt, submit.emitted.len()));
                self.jobs.push(*submit);
            }
            ToWorker::Cancel { id, attempt } => {
                self.note(&format!("cancel {id} {attempt}"));
                self.jobs.retain(|job| (job.id, job.attempt) != (id, attempt));
            }
            ToWorker::Ping { nonce } => send(write, &FromWorker::Pong { nonce, stats: self.stats() }).await,
            ToWorker::Drain => self.note("drain"),
            ToWorker::Shutdown => std::process::exit(0),
        }
    }

    async fn introduce(&mut self, write: &mut OwnedWriteHalf) {
        let version = if self.script == Script::WrongVersion { 999 } else { PROTOCOL_VERSION };
        let device = DeviceInfo {
            backend: "cpu".to_owned(),
            name: "abacus".to_owned(),
            units: 1,
            memory_total_bytes: 1 << 30,
        };
        send(write, &FromWorker::Hello { version, pid: std::process::id(), device }).await;
        send(write, &FromWorker::Loading { done_bytes: 25, total_bytes: 100 }).await;
        while self.script == Script::SlowLoad && !self.notes.join("go").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let model = ModelInfo {
            architecture: "arithmetic".to_owned(),
            name: "fake".to_owned(),
            parameters: 1,
            quantization: "F32".to_owned(),
            vocab_size: 50_000,
            context_train: CONTEXT_TOKENS,
            weight_bytes: 4,
        };
        let limits = WorkerLimits {
            context_tokens: CONTEXT_TOKENS,
            sequences: SEQUENCES,
            waiting: 64,
            kv_blocks: 100,
            kv_block_tokens: 16,
        };
        send(write, &FromWorker::Ready { model, limits }).await;
    }

    fn stats(&self) -> EngineStats {
        let jobs = self.jobs.len() as u32;
        let running = jobs.min(SEQUENCES);
        EngineStats { step: self.step, running, waiting: jobs - running, ..EngineStats::default() }
    }

    /// The requests computed now; the others wait for a place.
    fn running(&mut self) -> impl Iterator<Item = &mut Submit> {
        self.jobs.iter_mut().take(SEQUENCES as usize)
    }

    /// What a step does to a worker that computes bad requests.
    async fn suffer(&mut self, write: &mut OwnedWriteHalf) {
        let jobs: Vec<(TokenId, bool)> = self
            .running()
            .map(|job| (job.prompt[0], job.prompt.get(1) == Some(&(job.emitted.len() as TokenId))))
            .collect();
        for (kind, is_due) in jobs {
            let is_fatal = kind == POISON || (kind == POISON_LATE && is_due);
            if is_fatal {
                self.note(&format!("aborts {kind}"));
                eprintln!("assertion failed: poison");
                std::process::abort();
            }
            if kind == POISON_HANG {
                self.note("hangs");
                stick(write).await;
            }
            if kind == MEMORY_EATER {
                self.note("out of memory");
                nix::sys::signal::raise(Signal::SIGKILL).expect("signal");
            }
        }
    }

    /// One step: one token for every job, one frame for all.
    async fn advance(&mut self, write: &mut OwnedWriteHalf) {
        self.step += 1;
        self.suffer(write).await;
        if self.first_life && self.step > 5 {
            match self.script {
                Script::FirstGarbage => {
                    write.write_all(&[7, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255]).await.expect("write");
                    std::future::pending::<()>().await;
                }
                Script::FirstHang => std::future::pending::<()>().await,
                Script::FirstStuck => stick(write).await,
                _ => {}
            }
        }
        let skip = u32::from(self.first_life && self.script == Script::FirstGap && self.step == 6);
        let mut events = Vec::new();
        for job in self.running() {
            let index = job.emitted.len();
            let token = token_at(&job.prompt, index);
            job.emitted.push(token);
            let logprobs = job.sampling.logprobs.map(|top| logprobs_at(&job.prompt, index, top));
            let index = index as u32 + skip;
            events.push(TokenEvent { id: job.id, attempt: job.attempt, index, token, logprobs });
        }
        send(write, &FromWorker::Step { events, stats: self.stats() }).await;
        for (id, attempt, reason) in self.jobs.iter().filter_map(end) {
            let timings = Timings { decode_us: 5, ..Timings::default() };
            send(write, &FromWorker::Finished { id, attempt, reason, timings }).await;
        }
        self.jobs.retain(|job| end(job).is_none());
    }
}

/// Whether a request has ended with its last token, and why.
fn end(job: &Submit) -> Option<(RequestId, Attempt, FinishReason)> {
    let limits = &job.limits;
    let emitted = job.emitted.len();
    let may_stop = emitted > limits.min_tokens as usize;
    let stops = may_stop && job.emitted.last().is_some_and(|last| limits.stop_tokens.contains(last));
    let reason = if stops {
        FinishReason::Stop
    } else if emitted >= limits.max_tokens as usize {
        FinishReason::Length
    } else {
        return None;
    };
    Some((job.id, job.attempt, reason))
}

async fn read_messages(read: OwnedReadHalf, messages: mpsc::UnboundedSender<ToWorker>) {
    let mut reader = FrameReader::new(read);
    while let Ok(Some(message)) = reader.read().await {
        if messages.send(message).is_err() {
            return;
        }
    }
}

/// What a computation without end looks like: the process goes on answering, the engine does not.
async fn stick(write: &mut OwnedWriteHalf) {
    loop {
        send(write, &FromWorker::Heartbeat { phase: Phase::Computing, progress: 7 }).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &FromWorker) {
    let mut frame = Vec::new();
    encode_frame(message, &mut frame).expect("encodes");
    if write.write_all(&frame).await.is_err() {
        // The gateway has closed the connection; a faithful worker ends.
        std::process::exit(0);
    }
}
