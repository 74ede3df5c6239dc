//! The accept loop on a real socket: limits and shutdown.

use crate::scripted::{Script, Server};
use gateway::server::{Limits, serve};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// Longest any step may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// What clients have to read their answers to the end in, after the shutdown.
const GRACE: Duration = Duration::from_secs(600);
/// Longer than what they have at least.
const SHORT_GRACE: Duration = Duration::from_millis(2500);

struct Listening {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn listen(script: Script, limits: Limits) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let router = Server::new(script).into_router();
    let shutdown = async {
        stopped.await.ok();
    };
    let task = tokio::spawn(async move {
        let open = serve(listener, router, limits, shutdown).await;
        open.finish(Instant::now() + GRACE).await;
    });
    Listening { address, stop, task }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut text)).await.unwrap().unwrap();
    String::from_utf8(text).unwrap()
}

const GENEROUS: Limits = Limits {
    connections: 8,
    header_timeout: Duration::from_secs(60),
    write_timeout: Duration::from_secs(60),
};

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = listen(Script::Hangs, Limits { connections: 1, ..GENEROUS }).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    // The first is counted once it is answered.
    first.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    tokio::time::timeout(DEADLINE, first.read_exact(&mut byte)).await.unwrap().unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    // What it has sent and nobody reads must not cost it the answer.
    second.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n") && answer.contains("\"too_many_connections\""), "{answer}");
}

#[tokio::test]
async fn slow_headers_lose_their_connection() {
    let server =
        listen(Script::Hangs, Limits { header_timeout: Duration::from_millis(100), ..GENEROUS }).await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nhost:").await.unwrap();
    read_to_end(&mut slow).await;
}

#[tokio::test]
async fn shutdown_lets_a_running_answer_finish_within_the_grace() {
    let told = Arc::new(Notify::new());
    let mut server = listen(Script::SaysWhenTold("done", Arc::clone(&told)), GENEROUS).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let body = r#"{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": true}"#;
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    client.write_all((head + body).as_bytes()).await.unwrap();
    let mut opening = [0; 200];
    tokio::time::timeout(DEADLINE, client.read_exact(&mut opening)).await.unwrap().unwrap();
    server.stop.send(()).unwrap();
    let ended = tokio::time::timeout(SHORT_GRACE, &mut server.task).await;
    assert!(ended.is_err(), "the answer is cut off");
    told.notify_one();
    let answer = read_to_end(&mut client).await;
    assert!(answer.contains("[DONE]"), "{answer}");
    tokio::time::timeout(DEADLINE, server.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "the socket is closed");
}
