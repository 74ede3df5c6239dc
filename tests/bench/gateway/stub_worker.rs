//! A worker without a model: it speaks the protocol and emits tokens at once, so that what a request takes is the
//! gateway's doing. Started by the gateway in place of the real one (`ROCMFORGE_WORKER_BIN`), for `gateway_overhead`.
//!
//! Every step emits one token of every request, which is a token from the middle of its prompt: plain text there.
//! `STUB_STEP_US` is the time from one step to the next (0: none). `STUB_STAMPS` names a file that takes, at each
//! request's end, the moments its tokens were written: a `u32` count, then that many `u64` of nanoseconds of the
//! monotonic clock, all little endian.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use shared::ids::{Attempt, RequestId, TokenId};
use shared::ipc::PROTOCOL_VERSION;
use shared::ipc::frame::{decode_payload, encode_frame};
use shared::ipc::message::*;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Sequences it claims to compute at once.
const SEQUENCES: u32 = 1024;
/// Positions it claims a sequence can have.
const CONTEXT_TOKENS: u32 = 65_536;

struct Job {
    id: RequestId,
    attempt: Attempt,
    token: TokenId,
    next: u32,
    max_tokens: u32,
    stamps: Vec<u64>,
}

struct Stub {
    socket: UnixStream,
    jobs: Vec<Job>,
    step: u64,
    stamps: Option<std::fs::File>,
    frames: Vec<u8>,
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn read_messages(socket: UnixStream, messages: &mpsc::Sender<ToWorker>) {
    let mut reader = BufReader::with_capacity(64 * 1024, socket);
    let mut length = [0; 4];
    while reader.read_exact(&mut length).is_ok() {
        let mut payload = vec![0; u32::from_le_bytes(length) as usize];
        if reader.read_exact(&mut payload).is_err() {
            return;
        }
        if messages.send(decode_payload(&payload).expect("a message")).is_err() {
            return;
        }
    }
}

impl Stub {
    fn queue(&mut self, message: &FromWorker) {
        encode_frame(message, &mut self.frames).expect("message encodes");
    }

    fn flush(&mut self) {
        self.socket.write_all(&self.frames).expect("the gateway reads");
        self.frames.clear();
    }

    fn stats(&self) -> EngineStats {
        EngineStats { step: self.step, running: self.jobs.len() as u32, ..EngineStats::default() }
    }

    fn take(&mut self, message: ToWorker) {
        match message {
            ToWorker::Hello { .. } => self.introduce(),
            ToWorker::Submit(submit) => self.jobs.push(Job {
                id: submit.id,
                attempt: submit.attempt,
                token: submit.prompt[submit.prompt.len() / 2],
                next: submit.emitted.len() as u32,
                max_tokens: submit.limits.max_tokens,
                stamps: Vec::new(),
            }),
            ToWorker::Cancel { id, attempt } => {
                self.jobs.retain(|job| (job.id, job.attempt) != (id, attempt));
            }
            ToWorker::Ping { nonce } => {
                let stats = self.stats();
                self.queue(&FromWorker::Pong { nonce, stats });
                self.flush();
            }
            ToWorker::Shutdown => std::process::exit(0),
            _ => {}
        }
    }

    fn introduce(&mut self) {
        let device = DeviceInfo {
            backend: "cpu".to_owned(),
            name: "stub".to_owned(),
            units: 1,
            memory_total_bytes: 1 << 30,
        };
        let pid = std::process::id();
        self.queue(&FromWorker::Hello { version: PROTOCOL_VERSION, pid, device });
        let model = ModelInfo {
            architecture: "stub".to_owned(),
            name: "stub".to_owned(),
            parameters: 1,
            quantization: "F32".to_owned(),
            vocab_size: 1024,
            context_train: CONTEXT_TOKENS,
            weight_bytes: 1,
        };
        let limits = WorkerLimits {
            context_tokens: CONTEXT_TOKENS,
            sequences: SEQUENCES,
            waiting: SEQUENCES,
            kv_blocks: 1 << 20,
            kv_block_tokens: 16,
        };
        self.queue(&FromWorker::Ready { model, limits });
        self.flush();
    }

    fn advance(&mut self) {
        self.step += 1;
        let now = now_ns();
        let event = |job: &mut Job| {
            let index = job.next;
            job.next += 1;
            job.stamps.push(now);
            TokenEvent { id: job.id, attempt: job.attempt, index, token: job.token, logprobs: None }
        };
        let events = self.jobs.iter_mut().map(event).collect();
        let stats = self.stats();
        self.queue(&FromWorker::Step { events, stats });
        let (done, going): (Vec<Job>, Vec<Job>) =
            std::mem::take(&mut self.jobs).into_iter().partition(|job| job.next >= job.max_tokens);
        self.jobs = going;
        for job in done {
            let timings = Timings::default();
            let (id, attempt) = (job.id, job.attempt);
            self.queue(&FromWorker::Finished { id, attempt, reason: FinishReason::Length, timings });
            if let Some(file) = &mut self.stamps {
                let mut bytes = (job.stamps.len() as u32).to_le_bytes().to_vec();
                bytes.extend(job.stamps.iter().flat_map(|stamp| stamp.to_le_bytes()));
                file.write_all(&bytes).expect("stamps are written");
            }
        }
        self.flush();
    }
}

fn main() {
    set_pdeathsig(Signal::SIGKILL).expect("death signal");
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|arg| arg == "--socket").expect("--socket PATH");
    let step_us = std::env::var("STUB_STEP_US").map_or(0, |text| text.parse().expect("a number"));
    let stamps = std::env::var_os("STUB_STAMPS").map(|path| {
        std::fs::OpenOptions::new().create(true).append(true).open(path).expect("the file for stamps")
    });
    let listener = UnixListener::bind(&args[at + 1]).expect("the socket binds");
    let (socket, _) = listener.accept().expect("the gateway connects");
    let (sender, messages) = mpsc::channel();
    let reading = socket.try_clone().expect("a second handle");
    std::thread::spawn(move || read_messages(reading, &sender));
    let mut stub = Stub { socket, jobs: Vec::new(), step: 0, stamps, frames: Vec::new() };
    let mut next_step = Instant::now();
    loop {
        // The first message of an idle time starts a step at once; others join the next.
        while let Some(message) = match stub.jobs.is_empty() {
            true => Some(messages.recv().unwrap_or(ToWorker::Shutdown)),
            false => messages.try_recv().ok(),
        } {
            stub.take(message);
        }
        next_step = next_step.max(Instant::now());
        stub.advance();
        if step_us > 0 {
            next_step += Duration::from_micros(step_us);
            std::thread::sleep(next_step.saturating_duration_since(Instant::now()));
        }
    }
}
