//! Every fault a worker can be told to have, one at a time: the stream goes on, and `/health` says what happened.

use harness::{Server, ServerOptions, Stream, binary, poll};
use serde_json::{Value, json};
use std::process::Command;
use std::sync::OnceLock;

fn body() -> Value {
    json!({
        "model": "default", "prompt": "One two three", "max_tokens": 120, "ignore_eos": true, "temperature": 0.8,
        "seed": 7, "logprobs": 2, "stream_options": {"include_usage": true},
    })
}

/// What a stream of [`body`] says: text, tokens with their log probabilities, usage.
fn answer(server: &Server) -> (String, Vec<Value>, Value) {
    let mut stream = Stream::open(&server.at("/v1/completions"), &body());
    let chunks = stream.rest();
    assert!(stream.done, "the stream broke off: {:?}", chunks.last());
    let text = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    let tokens = chunks.iter().map(|chunk| chunk["choices"][0]["logprobs"].clone());
    let usage = chunks.last().map_or(Value::Null, |chunk| chunk["usage"].clone());
    (text, tokens.filter(|logprobs| !logprobs.is_null()).collect(), usage)
}

fn undisturbed() -> &'static (String, Vec<Value>, Value) {
    static ANSWER: OnceLock<(String, Vec<Value>, Value)> = OnceLock::new();
    ANSWER.get_or_init(|| answer(&Server::ready(&ServerOptions::default())))
}

/// Streams through one occurrence of `fault` on the only worker; the end of that worker as `/health` tells it.
fn survives(fault: &str, further: &[(&str, &str)]) -> Value {
    let directory = tempfile::tempdir().expect("temporary directory");
    let rule = format!("{fault}@once={}", directory.path().join("struck").display());
    // A backtrace would push the line that says what happened out of the few that are kept.
    let options = ServerOptions::default().env("ROCMFORGE_FAULT", &rule).env("RUST_BACKTRACE", "0");
    let options = further.iter().fold(options, |options, (name, value)| options.env(name, value));
    let server = Server::ready(&options);
    assert_eq!(&answer(&server), undisturbed(), "{fault}");
    let health = server.health();
    assert_eq!(health["workers"][0]["restarts"], 1, "{fault}: {health}");
    assert!(server.log().contains("fault injection is on"), "{fault}: no warning in the log");
    health["workers"][0]["last_exit"].clone()
}

/// The same, for a worker whose end must be told in these words.
fn check(fault: &str, words: &str) {
    let exit = survives(fault, &[]);
    assert!(exit.to_string().contains(words), "{fault}: {exit} without {words:?}");
}

#[test]
fn a_stream_survives_every_way_of_dying() {
    check("die@step=40", "SIGKILL");
    check("die=segv@step=40", "SIGSEGV");
    check("die=abort@step=40", "SIGABRT");
    check("panic@step=40", "engine thread panicked (exit code 70)");
    check("exit=3@step=40", "exit code 3");
    check("alloc@step=40", "memory allocation of");
}

#[test]
fn a_stream_survives_a_damaged_frame() {
    check("corrupt@step=40", "frame does not decode");
}

#[test]
fn a_request_waits_for_a_worker_that_cannot_load_at_first() {
    check("load-fail", "loading fails because ROCMFORGE_FAULT says so");
    check("die=segv@load", "SIGSEGV");
}

#[test]
fn a_crash_during_the_prefill_of_the_resumed_text_is_survived() {
    // The second life dies at its first step, which computes prompt and emitted tokens at once.
    let directory = tempfile::tempdir().expect("temporary directory");
    let once = |name: &str| directory.path().join(name).display().to_string();
    let rules = format!("die@step=40@once={}; die@step=1@once={}", once("first"), once("second"));
    let server = Server::ready(&ServerOptions::default().env("ROCMFORGE_FAULT", &rules));
    assert_eq!(&answer(&server), undisturbed());
    assert_eq!(server.health()["workers"][0]["restarts"], 2);
}

#[test]
fn a_stream_survives_an_engine_that_stands_still() {
    let exit = survives("hang@step=40", &[("ROCMFORGE_HANG_TIMEOUT", "1")]);
    assert!(exit.to_string().contains("no progress"), "{exit}");
}

#[test]
fn tokens_do_not_depend_on_blocks_being_there() {
    let options = ServerOptions::default().env("ROCMFORGE_FAULT", "alloc=blocks@p=0.8");
    let server = Server::ready(&options);
    assert_eq!(&answer(&server), undisturbed());
    poll("preemptions to be told", || (server.metric("rocmforge_engine_preemptions")? >= 1.0).then_some(()));
    assert_eq!(server.health()["workers"][0]["restarts"], 0);
}

#[test]
fn rules_that_do_not_parse_end_the_server_with_a_clear_line() {
    let run = |program: &str, args: &[&str]| {
        let output =
            Command::new(binary(program)).args(args).env("ROCMFORGE_FAULT", "slow=5; explode").output();
        let output = output.expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let words = "ROCMFORGE_FAULT has rule `explode`: fault `explode` is unknown, use die";
    let (code, stderr) = run("rocmforge", &["serve", "--port", "0"]);
    assert!(code == Some(64) && stderr.contains(words), "{code:?} {stderr}");
    let (code, stderr) =
        run("rocmforge-worker", &["serve", "--socket", "/nowhere/w.sock", "--model", "/nowhere"]);
    assert!(code == Some(64) && stderr.contains(words), "{code:?} {stderr}");
}
