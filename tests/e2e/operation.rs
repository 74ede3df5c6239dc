//! What an operator does to a running server: drains it, restarts its workers, reloads its configuration, kills it;
//! and what he finds in its log.

use harness::{Server, ServerOptions, Stream, binary, chat_body, get, poll, post};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn completion(seed: u64) -> Value {
    json!({
        "model": "default", "prompt": "One two three", "max_tokens": 200, "ignore_eos": true,
        "temperature": 0.8, "seed": seed,
    })
}

fn text(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect()
}

/// Runs a command against the server; its output, if it succeeded.
fn run(server: &Server, args: &[&str]) -> String {
    let output = Command::new(binary("rocmforge")).args(args).args(["--url", &server.at("")]).output();
    let output = output.expect("rocmforge runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Restarts all workers while clients stream without pause; nothing may fail and no token may differ.
fn restart_under_load(workers: usize) -> String {
    const CLIENTS: usize = 4;
    let count = workers.to_string();
    let server = Server::ready(&ServerOptions::args(&["--workers", &count]));
    poll("all workers to be ready", || {
        (server.worker_pids().len() == workers && server.health()["status"] == "ok").then_some(())
    });
    let before = server.worker_pids();
    let url = server.at("/v1/completions");
    let expected: Vec<String> =
        (0..CLIENTS).map(|seed| text(&Stream::open(&url, &completion(seed as u64)).rest())).collect();
    let (stop, finished) = (AtomicBool::new(false), AtomicUsize::new(0));
    let output = std::thread::scope(|scope| {
        for (seed, expected) in expected.iter().enumerate() {
            let (url, stop, finished) = (&url, &stop, &finished);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = Stream::open(url, &completion(seed as u64));
                    let chunks = stream.rest();
                    assert!(stream.done, "client {seed}: {:?}", chunks.last());
                    assert_eq!(&text(&chunks), expected, "client {seed}");
                    finished.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        poll("clients to stream", || (finished.load(Ordering::Relaxed) >= CLIENTS).then_some(()));
        let output = run(&server, &["restart-workers", "--grace", "0.2"]);
        let restarted = finished.load(Ordering::Relaxed);
        poll("clients to go on", || (finished.load(Ordering::Relaxed) >= restarted + CLIENTS).then_some(()));
        stop.store(true, Ordering::Relaxed);
        output
    });
    let after = server.worker_pids();
    assert_eq!(after.len(), workers, "{}", server.health());
    assert!(after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    println!("{} requests, none failed\n{output}", finished.load(Ordering::Relaxed));
    output
}

#[test]
fn a_rolling_restart_under_load_fails_no_request_and_changes_no_token() {
    let output = restart_under_load(2);
    assert_eq!(output.lines().count(), 2, "{output}");
    assert!(output.starts_with("worker 0 restarted, away for "), "{output}");
}

#[test]
fn with_a_single_worker_requests_wait_for_its_restart() {
    restart_under_load(1);
}

#[test]
fn drain_finishes_what_runs_and_ends_the_server() {
    let mut server = Server::ready(&ServerOptions::default());
    let url = server.at("/v1/completions");
    let mut stream = Stream::open(&url, &completion(1));
    stream.next_chunk().expect("first chunk");
    let output = run(&server, &["drain", "--no-wait"]);
    assert!(output.starts_with("draining, "), "{output}");
    assert_eq!(get(&server.at("/ready")).1["reason"], "shutting down");
    stream.rest();
    assert!(stream.done);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut server = Server::ready(&ServerOptions::args(&["--grace", "600"]));
    let mut body = completion(1);
    body["max_tokens"] = json!(7000);
    let mut stream = Stream::open(&server.at("/v1/completions"), &body);
    stream.next_chunk().expect("first chunk");
    let worker = server.worker_pids()[0];
    server.signal(Signal::SIGTERM);
    poll("/ready to say no", || (get(&server.at("/ready")).0 == 503).then_some(()));
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait(), Some(0));
    poll("the worker to be gone", || kill(Pid::from_raw(worker), None).is_err().then_some(()));
}

#[test]
fn operators_routes_ask_for_the_key_where_there_is_one() {
    let server = Server::ready(&ServerOptions::default().env("ROCMFORGE_ADMIN_KEY", "adm-1"));
    let (status, body) = post(&server.at("/admin/drain"), &Value::Null);
    assert_eq!((status, &body["error"]["code"]), (401, &json!("admin_key_required")));
    let output = Command::new(binary("rocmforge"))
        .args(["restart-workers", "--url", &server.at("")])
        .env("ROCMFORGE_ADMIN_KEY", "adm-1")
        .output()
        .expect("rocmforge runs");
    assert!(output.status.success(), "{output:?}");
    assert!(run(&server, &["status"]).contains("worker 0: ready"));
}

#[test]
fn a_reload_exchanges_keys_limits_and_log_level_and_drops_no_connection() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let (keys, env) = (folder.path().join("keys"), folder.path().join("env"));
    let write = |path: &std::path::Path, text: &str| std::fs::write(path, text).expect("written");
    write(&keys, "sk-old\n");
    write(&env, &format!("ROCMFORGE_API_KEY_FILE={}\nROCMFORGE_MAX_BODY=16\n", keys.display()));
    // The harness sets the level by variable, which goes before the file; an empty one counts as not set.
    let options =
        ServerOptions::args(&["--env-file", env.to_str().expect("UTF-8")]).env("ROCMFORGE_LOG_LEVEL", "");
    let server = Server::ready(&options);
    let client = reqwest::blocking::Client::new();
    let ask = |key: &str| {
        let request = client.post(server.at("/v1/chat/completions")).bearer_auth(key);
        request.json(&chat_body("Who are you?")).send().expect("an answer").status().as_u16()
    };
    assert_eq!((ask("sk-old"), ask("sk-new")), (200, 401));
    let mut body = completion(1);
    body["stream"] = json!(true);
    body["max_tokens"] = json!(3000);
    let mut stream =
        client.post(server.at("/v1/completions")).bearer_auth("sk-old").json(&body).send().expect("stream");
    write(&keys, "sk-new rpm=2\n");
    write(
        &env,
        &format!(
            "ROCMFORGE_API_KEY_FILE={}\nROCMFORGE_LOG_LEVEL=info\nROCMFORGE_MAX_BODY=20\n",
            keys.display()
        ),
    );
    server.signal(Signal::SIGHUP);
    poll("the reload", || server.log().contains("configuration reloaded").then_some(()));
    assert!(server.log().contains("these settings changed and need a restart"), "{}", server.log());
    assert_eq!((ask("sk-old"), ask("sk-new"), ask("sk-new"), ask("sk-new")), (401, 200, 200, 429));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stream, &mut rest).expect("the stream goes on");
    assert!(rest.trim_end().ends_with("data: [DONE]"), "{rest}");
    // What is wrong changes nothing.
    write(&keys, "\n");
    server.signal(Signal::SIGHUP);
    poll("the refusal", || server.log().contains("configuration not reloaded").then_some(()));
    assert_eq!(ask("sk-old"), 401);
}

#[test]
fn a_stopped_worker_is_replaced_within_the_limit_in_every_state() {
    let server = Server::ready(&ServerOptions::args(&["--hang-timeout", "1"]));
    let stop = |server: &Server| {
        let pid = server.worker_pids()[0];
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("the worker runs");
        pid
    };
    // Idle.
    let idle = stop(&server);
    poll("another worker", || server.worker_pids().first().is_some_and(|pid| *pid != idle).then_some(()));
    server.wait_ready();
    let health = server.health();
    assert_eq!(health["workers"][0]["last_exit"], "no answer for 1s (signal 9 (SIGKILL))", "{health}");
    assert_eq!(health["workers"][0]["restarts"], 1, "one that answers is left alone: {health}");
    // Busy.
    let url = server.at("/v1/completions");
    let undisturbed = text(&Stream::open(&url, &completion(3)).rest());
    let mut stream = Stream::open(&url, &completion(3));
    let mut chunks = vec![stream.next_chunk().expect("first chunk")];
    stop(&server);
    chunks.extend(stream.rest());
    assert!(stream.done, "the stream broke off: {:?}", chunks.last());
    assert_eq!(text(&chunks), undisturbed);
}

/// A fault that strikes in the first of the worker's lives only.
fn once(folder: &tempfile::TempDir, fault: &str) -> ServerOptions {
    let fault = format!("{fault}@once={}", folder.path().join("struck").display());
    ServerOptions::args(&["--hang-timeout", "1"]).env("ROCMFORGE_FAULT", &fault)
}

#[test]
fn a_worker_stopped_while_it_loads_is_replaced_within_the_limit() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let server = Server::start(&once(&folder, "hang@load"));
    poll("loading", || (server.health()["workers"][0]["state"] == "loading").then_some(()));
    kill(Pid::from_raw(server.worker_pids()[0]), Signal::SIGSTOP).expect("the worker runs");
    server.wait_ready();
    let health = server.health();
    assert_eq!(health["workers"][0]["last_exit"], "no answer for 1s (signal 9 (SIGKILL))", "{health}");
}

#[test]
fn a_hung_engine_is_found_though_its_process_answers() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let server = Server::ready(&once(&folder, "hang@step=40"));
    let mut stream = Stream::open(&server.at("/v1/completions"), &completion(3));
    let chunks = stream.rest();
    assert!(stream.done, "the stream broke off: {:?}", chunks.last());
    assert_eq!(text(&chunks), text(&Stream::open(&server.at("/v1/completions"), &completion(3)).rest()));
    let health = server.health();
    let expected = "no progress for 1s while computing (signal 9 (SIGKILL))";
    assert_eq!(health["workers"][0]["last_exit"], expected, "{health}");
}

#[test]
fn sockets_of_a_killed_gateway_are_removed_by_the_next() {
    let folder = tempfile::tempdir().expect("temporary directory");
    let options = || ServerOptions::default().env("XDG_RUNTIME_DIR", folder.path().to_str().expect("UTF-8"));
    let mut first = Server::ready(&options());
    let left = || -> Vec<_> {
        folder.path().read_dir().expect("directory").flatten().map(|entry| entry.path()).collect()
    };
    let of_first = left();
    assert_eq!(of_first.len(), 1);
    first.signal(Signal::SIGKILL);
    assert_eq!(first.wait(), None);
    let mut second = Server::ready(&options());
    assert!(!of_first[0].exists(), "{:?}", left());
    second.signal(Signal::SIGTERM);
    assert_eq!(second.wait(), Some(0));
    assert!(left().is_empty(), "{:?}", left());
}

#[test]
fn a_workers_log_lines_reach_the_gateways_log_with_its_id() {
    let json = Server::ready(&ServerOptions::args(&["--workers", "2"]).env("ROCMFORGE_LOG_FORMAT", "json"));
    let loaded = |worker: u64| {
        json.log()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["message"] == "model loaded" && line["worker"] == worker)
    };
    let lines = [poll("worker 0's line", || loaded(0)), poll("worker 1's line", || loaded(1))];
    for line in lines {
        assert_eq!(
            (&line["level"], &line["target"]),
            (&json!("INFO"), &json!("worker::commands::serve")),
            "{line}"
        );
        assert!(line["kv_blocks"].is_u64(), "fields are fields: {line}");
    }
    let human = Server::ready(&ServerOptions::default());
    poll("the line for people", || {
        let log = human.log();
        log.lines()
            .any(|line| line.contains("INFO") && line.contains("model loaded") && line.contains("worker=0"))
            .then_some(())
    });
}
