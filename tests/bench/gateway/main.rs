//! What the gateway itself costs: time to first token, time per token, and tokens per second over 256 streams, with a
//! stub worker that emits tokens at once.
//!
//! ```text
//! cargo build --release && cargo build --release -p rocmforge-tests --examples
//! target/release/examples/gateway_overhead [floor|first|token|flood|paced]
//! ```
//! - `floor`: what `token` would be without a gateway: the same bytes from a thread straight to the same client.
//! - `first`: one request at a time, from the request's last byte written to the first token read; all of it is
//!   charged to the gateway, the client's and the stub's own share included.
//! - `token`: one stream, a token every 2 ms, from the stub's clock before it writes to the client's after it reads.
//! - `flood`: 256 streams of 500 tokens at once, as fast as they go.
//! - `paced`: 256 streams, one step a period with a token of each; rate kept and latency of each token.

mod load;

use harness::load::{Answer, now_ns, quantile};
use harness::{Server, ServerOptions, binary};
use load::{request, run};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

/// Events of an answer that hold no token: the role, the finish reason and `[DONE]`.
const OTHER_EVENTS: usize = 3;
const STREAMS: usize = 256;
/// From token to token of one stream.
const STEP: Duration = Duration::from_millis(2);
const PROMPT: &str = "Please tell me about cats and about dogs and about cats and about dogs and about cats \
                      and about dogs and about cats and about dogs and about cats";

/// A gateway over the stub, and where to reach it.
fn start(step_us: u64, stamps: Option<&Path>) -> (Server, SocketAddr) {
    let stub = binary("examples/stub_worker");
    let mut options = ServerOptions::args(&["--max-queue", "2048"])
        .env("ROCMFORGE_WORKER_BIN", stub.to_str().expect("a path of text"))
        .env("ROCMFORGE_LOG_LEVEL", "warn")
        .env("STUB_STEP_US", &step_us.to_string());
    if let Some(path) = stamps {
        options = options.env("STUB_STAMPS", path.to_str().expect("a path of text"));
    }
    let server = Server::ready(&options);
    let address = server.address();
    (server, address)
}

/// Every answer must be whole: a fast gateway that loses tokens measures nothing.
fn check(answer: &Answer, max_tokens: usize) {
    assert_eq!((answer.status, answer.events_ns.len()), (200, max_tokens + OTHER_EVENTS));
}

fn first() {
    let (_server, address) = start(0, None);
    let ask = request(PROMPT, 8);
    run(address, &ask, (1, 500, Duration::from_secs(5)), |answer| check(&answer, 8));
    let mut waits = Vec::new();
    run(address, &ask, (1, 5000, Duration::from_secs(10)), |answer| {
        check(&answer, 8);
        waits.push(answer.events_ns[1] - answer.sent_ns);
    });
    println!(
        "first  requests {} to_first_token_us p50 {} p99 {}",
        waits.len(),
        quantile(&mut waits, 0.5) / 1000,
        quantile(&mut waits, 0.99) / 1000
    );
}

/// Latency of each token: stamps of the stub against arrivals.
fn latencies(stamps: &Path, answers: &[Answer]) -> Vec<u64> {
    let bytes = std::fs::read(stamps).expect("stamps");
    let mut rest = bytes.as_slice();
    let mut latencies = Vec::new();
    for answer in answers {
        let (count, after) = rest.split_at(4);
        let count = u32::from_le_bytes(count.try_into().expect("four bytes")) as usize;
        let (stamps, after) = after.split_at(count * 8);
        rest = after;
        let stamps = stamps.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight")));
        latencies.extend(stamps.zip(&answer.events_ns[1..]).map(|(sent, came)| came - sent));
    }
    latencies
}

fn token() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let stamps = folder.path().join("stamps");
    let (_server, address) = start(STEP.as_micros() as u64, Some(&stamps));
    let mut answers = Vec::new();
    run(address, &request(PROMPT, 1000), (1, 4, Duration::from_secs(60)), |answer| {
        check(&answer, 1000);
        answers.push(answer);
    });
    let mut latencies = latencies(&stamps, &answers);
    println!(
        "token  tokens {} per_token_us p50 {} p99 {}",
        latencies.len(),
        quantile(&mut latencies, 0.5) / 1000,
        quantile(&mut latencies, 0.99) / 1000
    );
}

/// The same client and the same bytes as in [`token`], one hop.
fn floor() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("the client connects");
        socket.set_nodelay(true).expect("option");
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).expect("a request");
        socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").expect("written");
        let event = format!("data: {}\n\n", "x".repeat(249));
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        let mut stamps = Vec::new();
        for _ in 0..2000 {
            std::thread::sleep(STEP);
            stamps.push(now_ns());
            socket.write_all(chunk.as_bytes()).expect("written");
        }
        socket.write_all(b"0\r\n\r\n").expect("written");
        stamps
    });
    let mut came = Vec::new();
    run(address, &request(PROMPT, 1), (1, 1, Duration::ZERO), |answer| came = answer.events_ns);
    let sent = server.join().expect("stamps");
    let mut latencies: Vec<u64> = sent.iter().zip(&came).map(|(sent, came)| came - sent).collect();
    println!(
        "floor  tokens {} per_token_us p50 {} p99 {}",
        latencies.len(),
        quantile(&mut latencies, 0.5) / 1000,
        quantile(&mut latencies, 0.99) / 1000
    );
}

fn flood() {
    const TOKENS: usize = 500;
    let (server, address) = start(0, None);
    let ask = request(PROMPT, TOKENS as u32);
    let cpu = cpu_s(server.pid());
    let started = Instant::now();
    let (mut tokens, mut bytes) = (0, 0);
    run(address, &ask, (STREAMS, usize::MAX, Duration::from_secs(10)), |answer| {
        check(&answer, TOKENS);
        tokens += TOKENS;
        bytes += answer.bytes;
    });
    let elapsed = started.elapsed().as_secs_f64();
    println!(
        "flood  streams {STREAMS} tokens_per_s {:.0} bytes_per_token {} gateway_cpu_us_per_token {:.2}",
        tokens as f64 / elapsed,
        bytes / tokens as u64,
        (cpu_s(server.pid()) - cpu) * 1e6 / tokens as f64
    );
}

fn paced() {
    const TOKENS: usize = 1000;
    for tokens_per_s in [50_000, 100_000, 200_000] {
        let step_us = 1_000_000 * STREAMS as u64 / tokens_per_s;
        let folder = tempfile::tempdir().expect("temporary directory");
        let stamps = folder.path().join("stamps");
        let (server, address) = start(step_us, Some(&stamps));
        let cpu = cpu_s(server.pid());
        let mut answers = Vec::new();
        let started = Instant::now();
        run(
            address,
            &request(PROMPT, TOKENS as u32),
            (STREAMS, STREAMS, Duration::from_secs(30)),
            |answer| {
                check(&answer, TOKENS);
                answers.push(answer);
            },
        );
        let elapsed = started.elapsed().as_secs_f64();
        // Streams run side by side and their order at the end is not known, but their stamps differ by little.
        let mut latencies = latencies(&stamps, &answers[..1]);
        let tokens = TOKENS * STREAMS;
        println!(
            "paced  streams {STREAMS} asked_per_s {tokens_per_s} tokens_per_s {:.0} per_token_us p50 {} p99 {} \
             gateway_cpu_us_per_token {:.2}",
            tokens as f64 / elapsed,
            quantile(&mut latencies, 0.5) / 1000,
            quantile(&mut latencies, 0.99) / 1000,
            (cpu_s(server.pid()) - cpu) * 1e6 / tokens as f64
        );
    }
}

/// Seconds of CPU time a process has used, its children apart.
fn cpu_s(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the gateway runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in hundredths of a second; the name's bracket ends field 2.
    let ticks: u64 = [fields[11], fields[12]].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / 100.0
}

fn main() {
    let modes: Vec<String> = std::env::args().skip(1).collect();
    for (name, mode) in
        [("floor", floor as fn()), ("first", first), ("token", token), ("flood", flood), ("paced", paced)]
    {
        if modes.is_empty() || modes.iter().any(|one| one == name) {
            mode();
        }
    }
}
