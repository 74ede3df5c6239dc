//! A worker dies: the gateway stays, says so, and serves again.

use harness::{Server, ServerOptions, Stream, chat_body, get, poll, post};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

fn kill_worker(server: &Server) -> i32 {
    let pid = server.worker_pids()[0];
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the worker runs");
    pid
}

fn is_alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None).is_ok()
}

#[test]
fn killed_worker_is_replaced_and_the_next_request_succeeds() {
    let server = Server::ready(&ServerOptions::default());
    let old = kill_worker(&server);
    poll("/ready to notice", || (get(&server.at("/ready")).0 == 503).then_some(()));
    server.wait_ready();
    assert_ne!(server.worker_pids()[0], old);
    let (status, body) =
        post(&server.at("/v1/chat/completions"), &chat_body("What is the capital of France?"));
    assert_eq!(status, 200, "{body}");
    let health = server.health();
    assert_eq!(health["workers"][0]["restarts"], json!(1), "{health}");
}

#[test]
fn stream_of_a_killed_worker_goes_on_with_the_same_tokens() {
    let server = Server::ready(&ServerOptions::default());
    let url = server.at("/v1/completions");
    let body = json!({
        "model": "default", "prompt": "One two three", "max_tokens": 600, "ignore_eos": true,
        "temperature": 0.8, "seed": 7,
    });
    let text = |chunks: &[serde_json::Value]| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect()
    };
    let undisturbed = text(&Stream::open(&url, &body).rest());
    let mut stream = Stream::open(&url, &body);
    let mut chunks = vec![stream.next_chunk().expect("first chunk")];
    kill_worker(&server);
    chunks.extend(stream.rest());
    assert!(stream.done, "the stream broke off: {:?}", chunks.last());
    assert_eq!(text(&chunks), undisturbed);
}

#[test]
fn nothing_is_left_behind_when_the_server_stops() {
    let mut server = Server::ready(&ServerOptions::default());
    let worker = server.worker_pids()[0];
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait(), Some(0));
    poll("the worker to be gone", || (!is_alive(worker)).then_some(()));
}

#[test]
fn worker_dies_with_a_killed_gateway() {
    let mut server = Server::ready(&ServerOptions::default());
    let worker = server.worker_pids()[0];
    server.signal(Signal::SIGKILL);
    assert_eq!(server.wait(), None);
    poll("the worker to be gone", || (!is_alive(worker)).then_some(()));
}
