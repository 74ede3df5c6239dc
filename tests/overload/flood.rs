//! Ten times what the server can do. First as many clients as it takes without refusing anybody, each asking again
//! when it is answered; from their pace comes the capacity. Then ten times that many requests a second, whether
//! answered or not.
//!
//! ```text
//! cargo build --release && ROCMFORGE_OVERLOAD_S=60 cargo test --release -p rocmforge-tests --test overload ten_times -- --nocapture
//! ```
//! is the full run, held to 50 ms and to latencies near those at capacity; without the variable the suite runs some
//! seconds, only wants orders of magnitude of refusals and probes, and shows the rest: CI machines are busy with other
//! things, and the programs are not optimised there.

use super::wait_settled;
use harness::load::{Answer, Arrival, Connection, now_ns, post_request, quantile};
use harness::{Server, ServerOptions};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Sequences the worker computes at once.
const SEQUENCES: usize = 8;
/// Requests that may wait in the gateway.
const QUEUE: usize = 8;
/// Requests the gateway hands a worker ahead of a free place.
const HANDED_AHEAD: usize = 2;
/// Connections of the flood: what is under way, and what is being refused.
const CONNECTIONS: usize = 128;
const OVERLOAD: f64 = 10.0;
/// Between two looks at `/health` and `/ready`.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Growth of the gateway's resident set from a quarter of the flood to its end.
const GROWTH_KIB_MAX: i64 = 16 * 1024;

/// What the run is held to.
struct Bounds {
    seconds: f64,
    /// Refusals, `/health` and `/ready`: for 99 of 100, and for every one.
    quick_ms: (u64, u64),
    /// How much longer accepted requests may take than at capacity, where that can be measured.
    slower: Option<f64>,
}

fn bounds() -> Bounds {
    match std::env::var("ROCMFORGE_OVERLOAD_S") {
        Ok(text) => {
            let seconds = text.parse().expect("ROCMFORGE_OVERLOAD_S is a number of seconds");
            Bounds { seconds, quick_ms: (50, 50), slower: Some(1.5) }
        }
        Err(_) => Bounds { seconds: 8.0, quick_ms: (1000, 5000), slower: None },
    }
}

/// Latencies in microseconds.
#[derive(Default)]
struct Taken {
    accepted_us: Vec<u64>,
    first_us: Vec<u64>,
    refused_us: Vec<u64>,
    unsent: usize,
}

impl Taken {
    fn add(&mut self, answer: &Answer) {
        let us = |ns: u64| ns.saturating_sub(answer.sent_ns) / 1000;
        match answer.status {
            200 => {
                // The first event holds the role, the second the first text.
                self.first_us.push(us(answer.events_ns[1]));
                self.accepted_us.push(us(answer.done_ns));
            }
            429 => self.refused_us.push(us(answer.done_ns)),
            status => panic!("status {status}, neither taken nor told to slow down"),
        }
    }
}

/// When requests are sent.
#[derive(Clone, Copy)]
enum Pace {
    /// So many clients, each when it was answered.
    Clients(usize),
    /// So many a second.
    Rate(f64),
}

fn load(server: &Server, pace: Pace, time: Duration) -> Taken {
    let body = "{\"model\":\"default\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\
                \"max_tokens\":64,\"ignore_eos\":true,\"stream\":true}";
    let request = post_request("/v1/chat/completions", "", body);
    let count = match pace {
        Pace::Clients(clients) => clients,
        Pace::Rate(_) => CONNECTIONS,
    };
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    let mut connections: Vec<Connection> = (0..count).map(|_| Connection::open(server.address())).collect();
    for (index, connection) in (0..).zip(&connections) {
        epoll.add(connection.socket(), EpollEvent::new(EpollFlags::EPOLLIN, index)).expect("epoll");
    }
    // In turn, so that none is idle until the server's read timeout closes it.
    let mut free: VecDeque<usize> = (0..count).collect();
    let mut taken = Taken::default();
    let (started, mut due) = (Instant::now(), 0.0);
    let mut buffer = vec![0; 256 * 1024];
    let mut ready = vec![EpollEvent::empty(); count];
    loop {
        let elapsed = started.elapsed();
        let sending = elapsed < time;
        if let (Pace::Rate(rate), true) = (pace, sending) {
            while due <= elapsed.as_secs_f64() * rate {
                due += 1.0;
                match free.pop_front() {
                    Some(index) => connections[index].send(&request),
                    None => taken.unsent += 1,
                }
            }
        } else if sending {
            while let Some(index) = free.pop_front() {
                connections[index].send(&request);
            }
        }
        if !sending && free.len() == count {
            return taken;
        }
        assert!(elapsed < time + harness::DEADLINE, "{} answers did not come", count - free.len());
        let came = epoll.wait(&mut ready, EpollTimeout::from(1_u16)).expect("epoll");
        for event in &ready[..came] {
            let index = event.data() as usize;
            match connections[index].receive(&mut buffer) {
                Arrival::Pending => {}
                Arrival::Closed => panic!("the server closed a connection"),
                Arrival::Whole(answer) => {
                    taken.add(&answer);
                    free.push_back(index);
                }
            }
        }
    }
}

/// Asks `path` again and again until told to stop; latencies in microseconds.
fn look(server: &Server, path: &str, over: &AtomicBool) -> Vec<u64> {
    let mut connection = Connection::open(server.address());
    connection.socket().set_nonblocking(false).expect("option");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut buffer = vec![0; 64 * 1024];
    let mut latencies = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let sent = now_ns();
        connection.send(request.as_bytes());
        while !matches!(connection.receive(&mut buffer), Arrival::Whole(_)) {}
        latencies.push((now_ns() - sent) / 1000);
        std::thread::sleep(LOOK_INTERVAL);
    }
    latencies
}

fn resident_kib(pid: i32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the gateway runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Resident sizes of the gateway, four a second.
fn weigh(server: &Server, over: &AtomicBool) -> Vec<i64> {
    let mut sizes = Vec::new();
    while !over.load(Ordering::Relaxed) {
        sizes.push(resident_kib(server.pid()));
        std::thread::sleep(Duration::from_millis(250));
    }
    sizes
}

fn show(name: &str, values: &mut [u64]) -> (u64, u64) {
    let (p50, p99) = (quantile(values, 0.5), quantile(values, 0.99));
    let max = values.last().copied().unwrap_or(0);
    let ms = |us: u64| us as f64 / 1000.0;
    println!(
        "{name:22} n {:6}  p50 {:8.2} ms  p99 {:8.2} ms  max {:8.2} ms",
        values.len(),
        ms(p50),
        ms(p99),
        ms(max)
    );
    (p50, p99)
}

fn check_quick(name: &str, values: &mut [u64], bounds: &Bounds) {
    let (_, p99) = show(name, values);
    let max = values.last().copied().unwrap_or(0);
    let (p99_ms, max_ms) = bounds.quick_ms;
    assert!(!values.is_empty(), "{name}: none");
    assert!(p99 <= p99_ms * 1000 && max <= max_ms * 1000, "{name} took longer than {p99_ms} or {max_ms} ms");
}

#[test]
fn ten_times_the_capacity_is_refused_quickly_and_harms_nobody() {
    let bounds = bounds();
    let queue = QUEUE.to_string();
    let options =
        ServerOptions::args(&["--max-queue", &queue]).env("ROCMFORGE_SEQUENCES_MAX", &SEQUENCES.to_string());
    let server = Server::ready(&options.env("ROCMFORGE_LOG_LEVEL", "warn"));
    let clients = Pace::Clients(SEQUENCES + HANDED_AHEAD + QUEUE);
    load(&server, clients, Duration::from_secs(1));
    let calm_time = Duration::from_secs_f64((bounds.seconds / 4.0).clamp(2.0, 15.0));
    let mut calm = load(&server, clients, calm_time);
    assert!(calm.refused_us.is_empty(), "{} refused at capacity", calm.refused_us.len());
    let capacity = calm.accepted_us.len() as f64 / calm_time.as_secs_f64();
    println!("capacity {capacity:.1} requests/s");

    let over = AtomicBool::new(false);
    let (mut flood, mut health, mut ready, sizes) = std::thread::scope(|scope| {
        let health = scope.spawn(|| look(&server, "/health", &over));
        let ready = scope.spawn(|| look(&server, "/ready", &over));
        let sizes = scope.spawn(|| weigh(&server, &over));
        let flood = load(&server, Pace::Rate(OVERLOAD * capacity), Duration::from_secs_f64(bounds.seconds));
        over.store(true, Ordering::Relaxed);
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<u64>>| thread.join().expect("a look");
        (flood, join(health), join(ready), sizes.join().expect("sizes"))
    });
    println!(
        "flood: {} accepted, {} refused, {} not sent for lack of connections",
        flood.accepted_us.len(),
        flood.refused_us.len(),
        flood.unsent
    );
    let (calm_p50, calm_p99) = show("capacity, whole", &mut calm.accepted_us);
    show("capacity, first token", &mut calm.first_us);
    let (p50, p99) = show("overload, whole", &mut flood.accepted_us);
    show("overload, first token", &mut flood.first_us);
    println!(
        "gateway resident KiB: {:?}",
        (sizes.first(), sizes.get(sizes.len() / 4), sizes.iter().max(), sizes.last())
    );
    check_quick("429", &mut flood.refused_us, &bounds);
    check_quick("/health", &mut health, &bounds);
    check_quick("/ready", &mut ready, &bounds);
    assert!(flood.refused_us.len() > 3 * flood.accepted_us.len(), "no overload");
    if let Some(slower) = bounds.slower {
        let longest = |calm: u64| (calm as f64 * slower) as u64;
        assert!(p50 <= longest(calm_p50) && p99 <= longest(calm_p99), "accepted requests lost their latency");
    }
    let growth = sizes.last().unwrap_or(&0) - sizes.get(sizes.len() / 4).unwrap_or(&0);
    assert!(growth <= GROWTH_KIB_MAX, "the gateway grew by {growth} KiB over three quarters of the flood");
    wait_settled(&server);
}
