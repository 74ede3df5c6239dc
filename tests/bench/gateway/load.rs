//! The load: one thread, one epoll, streams that each send the next request when their answer is whole.

use harness::load::{Answer, Arrival, Connection, post_request};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Longest silence of all connections together.
const SILENCE_MAX_MS: u16 = 10_000;

/// A streaming chat request over HTTP.
pub(crate) fn request(prompt: &str, max_tokens: u32) -> Vec<u8> {
    let body = format!(
        "{{\"model\":\"default\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}],\
         \"max_tokens\":{max_tokens},\"ignore_eos\":true,\"stream\":true}}"
    );
    post_request("/v1/chat/completions", "", &body)
}

/// Runs `streams` at once and hands every answer to `done`. No request is begun after `time`, or after `requests_max`
/// of them.
pub(crate) fn run(
    address: SocketAddr,
    request: &[u8],
    (streams, requests_max, time): (usize, usize, Duration),
    mut done: impl FnMut(Answer),
) {
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("epoll");
    let mut connections: Vec<Connection> = (0..streams).map(|_| Connection::open(address)).collect();
    for (index, connection) in (0..).zip(&connections) {
        epoll.add(connection.socket(), EpollEvent::new(EpollFlags::EPOLLIN, index)).expect("epoll");
    }
    let started = Instant::now();
    let (mut sent, mut open) = (0, 0);
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
            match connection.receive(&mut buffer) {
                Arrival::Pending => {}
                Arrival::Closed => panic!("the gateway closed a connection"),
                Arrival::Whole(answer) => {
                    done(answer);
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
}
