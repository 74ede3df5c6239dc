//! Workers that run by themselves, as under systemd: gateways come and go, the model stays loaded.

use harness::{DEADLINE, Server, ServerOptions, Stream, binary, chat_body, get, poll, post, repository};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// A worker without a gateway, stopped when dropped.
struct Worker {
    child: Child,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

impl Worker {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).expect("mode");
        let socket = directory.path().join("worker.sock");
        let child = Self::spawn(&socket, Stdio::null());
        poll("the worker's socket", || socket.exists().then_some(()));
        Self { child, socket, directory }
    }

    fn spawn(socket: &Path, stderr: Stdio) -> Child {
        Command::new(binary("rocmforge-worker"))
            .arg("serve")
            .arg("--socket")
            .arg(socket)
            .arg("--model")
            .arg(demo_model())
            .args(["--threads", "1"])
            .stdin(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("rocmforge-worker starts")
    }

    /// As a service manager does when the process has ended.
    fn start_again(&mut self) {
        let status = self.child.wait().expect("child is ours");
        self.child = Self::spawn(&self.socket, Stdio::null());
        assert_eq!(status.code(), Some(0), "told to end, it ends well");
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the worker runs");
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("child is ours").is_none()
    }

    fn gateway(&self) -> ServerOptions {
        let socket = self.socket.to_str().expect("UTF-8").to_owned();
        ServerOptions::args(&["--attach", &socket, "--model", demo_model().to_str().expect("UTF-8")])
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn demo_model() -> PathBuf {
    repository().join("gateway/demo/rocmforge-demo.gguf")
}

fn long_completion() -> Value {
    json!({
        "model": "default", "prompt": "One two three", "max_tokens": 600, "ignore_eos": true,
        "temperature": 0.8, "seed": 7,
    })
}

fn text(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect()
}

/// The question's answer, asked until the server takes it.
fn answers(server: &Server) {
    let (status, body) =
        post(&server.at("/v1/chat/completions"), &chat_body("What is the capital of France?"));
    assert_eq!(status, 200, "{body}");
}

#[test]
fn an_attached_worker_outlives_gateways_and_the_next_one_is_ready_at_once() {
    let mut worker = Worker::start();
    let first = Server::ready(&worker.gateway());
    assert_eq!(first.worker_pids(), [worker.pid()], "{}", first.health());
    answers(&first);
    let mut stream = Stream::open(&first.at("/v1/completions"), &long_completion());
    stream.next_chunk().expect("first chunk");
    let mut first = first;
    first.signal(Signal::SIGKILL);
    assert_eq!(first.wait(), None);
    assert!(worker.is_running());

    let started = Instant::now();
    let mut second = Server::ready(&worker.gateway());
    println!("ready {:?} after its start, test harness included", started.elapsed());
    answers(&second);
    // What the first one left behind is gone: the cache's blocks are free again.
    poll("blocks to be free", || {
        let free = second.metric("rocmforge_engine_kv_blocks_free")?;
        (second.metric("rocmforge_engine_kv_blocks")? == free && free > 0.0).then_some(())
    });
    second.signal(Signal::SIGTERM);
    assert_eq!(second.wait(), Some(0));
    assert!(worker.is_running(), "a gateway's end is not the worker's");
    answers(&Server::ready(&worker.gateway()));
    assert_eq!(
        worker.directory.path().read_dir().expect("directory").count(),
        1,
        "the socket and nothing else"
    );
}

#[test]
fn a_second_gateway_is_told_who_has_the_worker_and_takes_over_when_that_one_ends() {
    let worker = Worker::start();
    let mut first = Server::ready(&worker.gateway());
    let second = Server::start(&worker.gateway());
    let owner = format!("worker serves another gateway, process {}", first.pid());
    poll("the second to say so", || {
        let (status, body) = get(&second.at("/ready"));
        (status == 503 && body["reason"].as_str()?.contains(&owner)).then_some(())
    });
    answers(&first);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait(), Some(0));
    second.wait_ready();
    answers(&second);
}

#[test]
fn streams_go_on_when_a_service_manager_restarts_the_worker() {
    let mut worker = Worker::start();
    let server = Server::ready(&worker.gateway());
    let url = server.at("/v1/completions");
    let undisturbed = text(&Stream::open(&url, &long_completion()).rest());
    let mut stream = Stream::open(&url, &long_completion());
    let mut chunks = vec![stream.next_chunk().expect("first chunk")];
    worker.signal(Signal::SIGTERM);
    worker.start_again();
    chunks.extend(stream.rest());
    assert!(stream.done, "the stream broke off: {:?}", chunks.last());
    assert_eq!(text(&chunks), undisturbed);
    assert_eq!(server.worker_pids(), [worker.pid()]);
    let health = server.health();
    assert_eq!(health["workers"][0]["last_exit"], "worker was told to end", "{health}");
}

#[test]
fn a_hung_attached_worker_is_killed_and_its_streams_go_on_in_the_next() {
    let mut worker = Worker::start();
    let options = worker.gateway();
    let args: Vec<&str> = options.args.iter().map(String::as_str).chain(["--hang-timeout", "1"]).collect();
    let server = Server::ready(&ServerOptions::args(&args));
    let url = server.at("/v1/completions");
    let undisturbed = text(&Stream::open(&url, &long_completion()).rest());
    let mut stream = Stream::open(&url, &long_completion());
    let mut chunks = vec![stream.next_chunk().expect("first chunk")];
    worker.signal(Signal::SIGSTOP);
    let started = Instant::now();
    let status = worker.child.wait().expect("child is ours");
    assert_eq!(status.code(), None, "killed by the gateway");
    assert!(started.elapsed() < DEADLINE / 2);
    worker.child = Worker::spawn(&worker.socket, Stdio::null());
    chunks.extend(stream.rest());
    assert!(stream.done, "the stream broke off: {:?}", chunks.last());
    assert_eq!(text(&chunks), undisturbed);
}

#[test]
fn a_worker_does_not_take_the_socket_of_a_living_one() {
    let mut worker = Worker::start();
    let mut other = Worker::spawn(&worker.socket, Stdio::piped());
    let status = other.wait().expect("child is ours");
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut other.stderr.take().expect("piped"), &mut stderr).expect("stderr");
    assert_eq!(status.code(), Some(64), "{stderr}");
    assert!(stderr.contains(&format!("is in use by process {}", worker.pid())), "{stderr}");
    answers(&Server::ready(&worker.gateway()));
    assert!(worker.is_running());
}

#[test]
fn a_gateway_with_another_model_says_so() {
    let worker = Worker::start();
    let socket = worker.socket.to_str().expect("UTF-8");
    let packed = repository().join("tests/golden/tokenizers/bert-bge.gguf.gz");
    let packed = std::fs::File::open(packed).expect("golden tokenizer");
    let vocabulary = worker.directory.path().join("other.gguf");
    let mut file = std::fs::File::create(&vocabulary).expect("file");
    std::io::copy(&mut flate2::read::GzDecoder::new(packed), &mut file).expect("unpacked");
    let model = vocabulary.to_str().expect("UTF-8");
    let server = Server::start(&ServerOptions::args(&["--attach", socket, "--model", model]));
    poll("/ready to name both", || {
        let (status, body) = get(&server.at("/ready"));
        (status == 503 && body["reason"].as_str()?.contains("give both the same --model")).then_some(())
    });
}
