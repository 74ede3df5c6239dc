//! Many clients at once, and something that harms the workers meanwhile.

use crate::client::{Visit, visit};
use crate::workload::Job;
use harness::{DEADLINE, Random, Server};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Clients at the same time.
pub const CLIENTS: u64 = 64;
/// What happens to a worker, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Nothing from here.
    None,
    /// This signal every so often, to one worker that serves, chosen by chance.
    Signal(Signal, Duration),
}

/// What clients saw, and what was done to the workers.
#[derive(Debug)]
pub struct Outcome {
    /// In the order of the jobs.
    pub visits: Vec<Visit>,
    /// Those that met a worker with requests.
    pub strikes: u64,
    pub took: Duration,
}

/// Sends `jobs` from [`CLIENTS`] clients to `server` while `harm` is done to its workers.
pub fn run(server: &Server, jobs: &[Job], harm: Harm) -> Outcome {
    let next = AtomicUsize::new(0);
    let base = server.at("");
    let start = Instant::now();
    let (over, until_over) = channel::<()>();
    let (visits, strikes) = std::thread::scope(|scope| {
        let striker = scope.spawn(move || match harm {
            Harm::None => 0,
            Harm::Signal(signal, every) => strike_often(server, signal, every, &until_over),
        });
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| client(&base, &next, jobs))).collect();
        let mut visits: Vec<(usize, Visit)> =
            clients.into_iter().flat_map(|client| client.join().expect("a client panicked")).collect();
        drop(over);
        visits.sort_by_key(|(index, _)| *index);
        let visits: Vec<Visit> = visits.into_iter().map(|(_, visit)| visit).collect();
        (visits, striker.join().expect("the striker panicked"))
    });
    Outcome { visits, strikes, took: start.elapsed() }
}

/// Sends one request after the other until all are taken.
fn client(base: &str, next: &AtomicUsize, jobs: &[Job]) -> Vec<(usize, Visit)> {
    let client = reqwest::blocking::Client::builder().timeout(DEADLINE * 2).build().expect("HTTP client");
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        jobs.get(index).map(|job| (index, job))
    };
    std::iter::from_fn(take).map(|(index, job)| (index, visit(&client, base, job))).collect()
}

/// Strikes a worker chosen by chance at every tick until there is nobody left to notice; how often it met requests.
/// It never waits for a worker to have some: struck at once whenever it is placed, no request would ever end.
fn strike_often(server: &Server, signal: Signal, every: Duration, until_over: &Receiver<()>) -> u64 {
    let mut random = Random::new(u64::from(std::process::id()));
    let mut strikes = 0;
    let mut due = Instant::now() + every;
    while until_over.recv_timeout(due.saturating_duration_since(Instant::now()))
        == Err(RecvTimeoutError::Timeout)
    {
        if let Some(target) = some_worker(server, &mut random) {
            send(signal, target.pid);
            strikes += u64::from(target.has_requests);
        }
        due = Instant::now() + every;
    }
    strikes
}

/// Who is struck.
struct Target {
    pid: Pid,
    has_requests: bool,
}

/// One of the workers that serve, by chance.
fn some_worker(server: &Server, random: &mut Random) -> Option<Target> {
    let health = server.health();
    let workers = health["workers"].as_array()?;
    let serving: Vec<_> = workers.iter().filter(|worker| worker["state"] == "ready").collect();
    let chosen = serving.get(random.below(serving.len().max(1) as u64) as usize)?;
    let pid = Pid::from_raw(chosen["pid"].as_i64()? as i32);
    Some(Target { pid, has_requests: chosen["in_flight"].as_u64() > Some(0) })
}

/// Sends a signal. One that is to end the process is sent until it has: the runtime's handler of SIGSEGV takes the
/// first, finds no overflown stack, and removes itself.
pub fn send(signal: Signal, pid: Pid) {
    let start = Instant::now();
    while kill(pid, signal).is_ok() && signal == Signal::SIGSEGV && start.elapsed() < DEADLINE {
        std::thread::yield_now();
    }
}
