//! One kept HTTP connection for load generators that must cost little beside what they measure: nothing is parsed but
//! the status, the length, and where events and answers end. Sockets do not block, so that one thread drives many.

use nix::time::{ClockId, clock_gettime};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Nanoseconds of the monotonic clock, which all processes of the machine share.
///
/// # Panics
/// Never on Linux.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the monotonic clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// The value below which `share` of `values` lie, 0 of none; `values` becomes sorted.
pub fn quantile(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    let at = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(0)
}

/// One answer, read to its end.
#[derive(Debug, Default)]
pub struct Answer {
    /// 0 while none has come.
    pub status: u16,
    /// When the request was written.
    pub sent_ns: u64,
    /// When the answer was whole.
    pub done_ns: u64,
    /// When each event had arrived whole, `[DONE]` included.
    pub events_ns: Vec<u64>,
    /// Bytes of head and body.
    pub bytes: u64,
}

/// What a read brought.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    /// Nothing, or not everything yet.
    Pending,
    /// The answer is whole; the connection can take the next request.
    Whole(Answer),
    /// The server closed.
    Closed,
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        (self.status, self.sent_ns, self.done_ns) == (other.status, other.sent_ns, other.done_ns)
    }
}

/// How the end of an answer is known.
enum Body {
    /// The head is not whole yet.
    Unknown,
    Length(u64),
    Chunked,
}

/// A connection with at most one request under way.
pub struct Connection {
    socket: TcpStream,
    head: Vec<u8>,
    body: Body,
    /// Last bytes that came, to see ends across reads.
    tail: [u8; 5],
    answer: Answer,
}

impl Connection {
    /// Connects.
    ///
    /// # Panics
    /// When the server does not accept.
    pub fn open(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("the server accepts");
        socket.set_nodelay(true).expect("option");
        socket.set_nonblocking(true).expect("option");
        Self { socket, head: Vec::new(), body: Body::Unknown, tail: [0; 5], answer: Answer::default() }
    }

    /// For epoll.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends a request, head and body. It must be smaller than a socket's buffer.
    ///
    /// # Panics
    /// When the socket does not take it at once.
    pub fn send(&mut self, request: &[u8]) {
        self.head.clear();
        self.body = Body::Unknown;
        self.tail = [0; 5];
        self.answer = Answer { sent_ns: now_ns(), ..Answer::default() };
        self.socket.write_all(request).expect("request is written");
    }

    /// Reads what is there.
    ///
    /// # Panics
    /// When the socket fails, or the answer is not HTTP.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Arrival {
        match self.socket.read(buffer) {
            Ok(0) => Arrival::Closed,
            Ok(read) if self.take(&buffer[..read]) => Arrival::Whole(std::mem::take(&mut self.answer)),
            Ok(_) => Arrival::Pending,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Arrival::Pending,
            Err(error) => panic!("reading: {error}"),
        }
    }

    /// Takes what arrived; true at the end of the answer.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let now = now_ns();
        self.answer.bytes += bytes.len() as u64;
        self.answer.done_ns = now;
        if matches!(self.body, Body::Unknown) {
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
            let head = std::str::from_utf8(&self.head[..end]).expect("a head of text").to_ascii_lowercase();
            self.answer.status = head.get(9..12).and_then(|code| code.parse().ok()).expect("a status line");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            self.body = match length {
                Some(length) => Body::Length((end + 4) as u64 + length.parse::<u64>().expect("a length")),
                None => Body::Chunked,
            };
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
        match self.body {
            Body::Unknown => false,
            Body::Length(length) => self.answer.bytes >= length,
            // No event holds a bare carriage return, so this is the last chunk of the answer.
            Body::Chunked => self.tail == *b"0\r\n\r\n",
        }
    }
}

/// A POST of `body` with these further header lines, each ended by `\r\n`.
pub fn post_request(path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
