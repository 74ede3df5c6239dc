//! A load generator that costs little beside what it measures: one thread, one epoll, kept connections, and events
//! counted by their terminators rather than parsed. Answers must be HTTP/1.1 in chunks, as the gateway's streams are.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest silence of all connections together.
const SILENCE_MAX_MS: u16 = 10_000;

/// Nanoseconds of the clock that the stub worker stamps its tokens with.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// One answer, read to its end.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// When the request was written.
    pub(crate) sent_ns: u64,
    /// When each event had arrived whole, `[DONE]` included.
    pub(crate) events_ns: Vec<u64>,
    pub(crate) bytes: u64,
}

/// One kept connection with at most one request under way.
struct Connection {
    socket: TcpStream,
    /// Last bytes of what came so far: status line at first, then enough to see terminators across reads.
    head: Vec<u8>,
    tail: [u8; 5],
    answer: Answer,
}

impl Connection {
    fn send(&mut self, request: &[u8]) {
        self.head.clear();
        self.tail = [0; 5];
        self.answer = Answer { sent_ns: now_ns(), ..Answer::default() };
        // A request is far smaller than a socket's buffer, which is empty now.
        self.socket.write_all(request).expect("request is written");
    }

    /// Takes what arrived; true at the end of the answer.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let now = now_ns();
        self.answer.bytes += bytes.len() as u64;
        if self.answer.status == 0 {
            self.head.extend_from_slice(bytes);
            if self.head.len() < 12 {
                return false;
            }
            let digits = std::str::from_utf8(&self.head[9..12]).expect("a status line");
            self.answer.status = digits.parse().expect("a status");
        }
        let mut last = self.tail[4];
        let mut events = 0;
        for &byte in bytes {
            events += u32::from(byte == b'\n' && last == b'\n');
            last = byte;
        }
        self.answer.events_ns.extend(std::iter::repeat_n(now, events as usize));
        let kept = bytes.len().min(5);
        self.tail.rotate_left(kept);
        self.tail[5 - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
        // No event holds a bare carriage return, so this is the last chunk of the answer.
        self.tail == *b"0\r\n\r\n"
    }
}

/// A streaming chat request over HTTP.
pub(crate) fn request(prompt: &str, max_tokens: u32) -> Vec<u8> {
    let body = format!(
        "{{\"model\":\"default\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}],\
         \"max_tokens\":{max_tokens},\"ignore_eos\":true,\"stream\":true}}"
    );
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Runs `streams` at once, each sending the next request when its answer is whole, and hands every answer to `done`.
/// No request is begun after `time`, or after `requests_max` of them.
pub(crate) fn run(
    address: SocketAddr,
    request: &[u8],
    (streams, requests_max, time): (usize, usize, Duration),
    mut done: impl FnMut(Answer),
) {
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    let mut connections: Vec<Connection> = (0..streams)
        .map(|index| {
            let socket = TcpStream::connect(address).expect("the gateway accepts");
            socket.set_nodelay(true).expect("option");
            socket.set_nonblocking(true).expect("option");
            epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).expect("epoll");
            Connection { socket, head: Vec::new(), tail: [0; 5], answer: Answer::default() }
        })
        .collect();
    let started = Instant::now();
    let mut sent = 0;
    let mut open = 0;
    for connection in connections.iter_mut().take(requests_max) {
        connection.send(request);
        sent += 1;
        open += 1;
    }
    let mut buffer = vec![0; 256 * 1024];
    let mut ready = vec![EpollEvent::empty(); streams];
    while open > 0 {
        let count = epoll.wait(&mut ready, EpollTimeout::from(SILENCE_MAX_MS)).expect("epoll");
        assert!(count > 0, "nothing came for {SILENCE_MAX_MS} ms, {open} answers under way");
        for event in &ready[..count] {
            let connection = &mut connections[event.data() as usize];
            let read = match connection.socket.read(&mut buffer) {
                Ok(0) => panic!("the gateway closed a connection after {:?}", connection.answer),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => panic!("reading: {error}"),
            };
            if connection.take(&buffer[..read]) {
                done(std::mem::take(&mut connection.answer));
                if sent < requests_max && started.elapsed() < time {
                    connection.send(request);
                    sent += 1;
                } else {
                    open -= 1;
                }
            }
        }
    }
}

/// The value below which `share` of `values` lie; `values` becomes sorted.
pub(crate) fn quantile(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(0)
}
