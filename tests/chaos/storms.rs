//! Four workers under 64 clients, struck again and again: no request fails, no token differs from an undisturbed run.

use crate::client::Visit;
use crate::report::{assert_unharmed, line};
use crate::storm::{Harm, run};
use crate::workload::Job;
use harness::{Server, ServerOptions, poll};
use nix::sys::signal::Signal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Requests of a storm without [`variable`]s: four storms and the undisturbed run take about a minute on two cores.
const REQUESTS: u64 = 500;
/// Between kills without variables.
const KILL_MS: u64 = 400;
/// Between crashes without variables. They make suspects, which run alone for a while; several crashes a
/// second would be taken for theirs now and then, and rightly so.
const CRASH_MS: u64 = 1500;
/// Between hangs without variables: a worker that stands still is out for as long as the gateway waits for it.
const HANG_MS: u64 = 1500;
/// A step takes so much longer, so that no machine is done before it has been struck often enough: sequences of 45
/// tokens, 500 of them over 64 clients, are 7 s at least.
const SLOW_MS: u64 = 20;
/// Strikes a storm must have had to prove something; twice as many are usual.
const STRIKES_MIN: u64 = 3;
/// Requests moved to another process per strike, at least: a quarter of the clients are at each worker.
const MIGRATIONS_PER_STRIKE: u64 = 2;
/// How long a worker may stand still before it is killed.
const HANG_S: &str = "1";

/// Storms run one at a time: two would be each other's disturbance.
static TURN: Mutex<()> = Mutex::new(());

fn variable(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() { default } else { text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`")) }
}

fn jobs() -> Vec<Job> {
    (0..variable("CHAOS_REQUESTS", REQUESTS)).map(Job::numbered).collect()
}

fn every(default_ms: u64) -> Duration {
    Duration::from_millis(variable("CHAOS_EVERY_MS", default_ms))
}

/// Four workers that fail as `fault` says.
fn options(fault: &str) -> ServerOptions {
    ServerOptions::args(&["--workers", "4"]).env("ROCMFORGE_FAULT", fault)
}

/// What everybody answers when nothing goes wrong, on one worker at full speed.
fn reference() -> &'static [Visit] {
    static REFERENCE: OnceLock<Vec<Visit>> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let server = Server::ready(&ServerOptions::args(&["--workers", "1"]));
        let outcome = run(&server, &jobs(), Harm::None);
        println!("{}", line("undisturbed, one worker", &outcome));
        outcome.visits
    })
}

fn restarts(server: &Server) -> u64 {
    let health = server.health();
    let workers = health["workers"].as_array().cloned().unwrap_or_default();
    workers.iter().filter_map(|worker| worker["restarts"].as_u64()).sum()
}

/// Runs one storm and holds everything it must show.
fn storm(name: &str, options: &ServerOptions, harm: Harm) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let reference = reference();
    let server = Server::ready(options);
    let jobs = jobs();
    let outcome = run(&server, &jobs, harm);
    println!("{}", line(name, &outcome));
    assert_unharmed(name, &jobs, &outcome, reference);
    // A worker that hangs at the end is found out yet, and what was struck last comes back.
    poll("all workers to be ready again", || {
        let health = server.health();
        let workers = health["workers"].as_array()?;
        workers.iter().all(|worker| worker["state"] == "ready").then_some(())
    });
    poll("everything to be given back", || {
        let zero = |name: &str| Some(server.metric(name)? == 0.0);
        let is_idle = zero("rocmforge_engine_running_sequences")? && zero("rocmforge_active_requests")?;
        let free = server.metric("rocmforge_engine_kv_blocks_free")?;
        (is_idle && free == server.metric("rocmforge_engine_kv_blocks")?).then_some(())
    });
    let restarts = restarts(&server);
    let migrations = server.metric("rocmforge_requests_resumed_total").unwrap_or(0.0) as u64;
    println!("{name}: restarts {restarts}, migrations {migrations}");
    let strikes = if harm == Harm::None { restarts } else { outcome.strikes };
    assert!(strikes >= STRIKES_MIN, "{name}: {strikes} strikes prove nothing");
    // A struck worker may have been dying already, of the strike before.
    assert!(restarts >= strikes / 2, "{name}: {restarts} restarts after {strikes} strikes");
    assert!(
        migrations >= strikes * MIGRATIONS_PER_STRIKE,
        "{name}: {migrations} migrations at {strikes} strikes"
    );
}

fn slow() -> String {
    format!("slow={SLOW_MS}")
}

#[test]
fn killed_workers_cost_nobody_a_token() {
    storm("SIGKILL", &options(&slow()), Harm::Signal(Signal::SIGKILL, every(KILL_MS)));
}

#[test]
fn crashing_workers_cost_nobody_a_token() {
    storm("SIGSEGV", &options(&slow()), Harm::Signal(Signal::SIGSEGV, every(CRASH_MS)));
}

#[test]
fn hanging_workers_cost_nobody_a_token() {
    let options = options(&slow()).env("ROCMFORGE_HANG_TIMEOUT", HANG_S);
    storm("SIGSTOP", &options, Harm::Signal(Signal::SIGSTOP, every(HANG_MS)));
}

#[test]
fn workers_out_of_memory_cost_nobody_a_token() {
    // Four workers that make a step in SLOW_MS each strike together about as often as the other storms do, by chance;
    // some strikes are certain, each in the first process that gets so far.
    let per_step = SLOW_MS as f64 / every(CRASH_MS).as_millis() as f64 / 4.0;
    let directory = tempfile::tempdir().expect("temporary directory");
    let once = |step: u64| format!("; alloc@step={step}@once={}/{step}", directory.path().display());
    let certain: String = (1..=STRIKES_MIN).map(|number| once(50 * number)).collect();
    storm("out of memory", &options(&format!("{}; alloc@p={per_step:.4}{certain}", slow())), Harm::None);
}
