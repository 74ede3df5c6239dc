//! Clients that stop reading, trickle, leave, or send without end. While they are at it, a well-behaved one asks
//! questions whose answers are known.

use super::wait_settled;
use harness::load::post_request;
use harness::{Random, Server, ServerOptions, chat_body, demo_questions, poll, post};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Times of the servers here, in seconds: long enough for an honest client on a busy machine.
const TIMEOUT_S: &str = "2";
/// Hostile clients of each kind.
const CLIENTS: usize = 16;
/// Longest any read of a client here may block.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

fn start(args: &[&str]) -> Server {
    let times = ["--read-timeout", TIMEOUT_S, "--write-timeout", TIMEOUT_S, "--max-body", "1"];
    Server::ready(&ServerOptions::args(&[&times[..], args].concat()))
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).expect("the server accepts");
    stream.set_read_timeout(Some(READ_TIMEOUT)).expect("option");
    stream
}

/// Runs `mischief` with a bystander beside it, who must be answered as if nothing happened; then nothing may be left.
fn beside_a_bystander(server: &Server, mischief: impl FnOnce()) {
    let questions = demo_questions();
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (question, expected) in questions.iter().cycle() {
                let (status, answer) = post(&server.at("/v1/chat/completions"), &chat_body(question));
                let text = &answer["choices"][0]["message"]["content"];
                assert_eq!((status, text), (200, &json!(expected)), "{question}: {answer}");
                answered.fetch_add(1, Ordering::Relaxed);
                if over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        mischief();
        poll("the bystander's answers", || (answered.load(Ordering::Relaxed) >= 3).then_some(()));
        over.store(true, Ordering::Relaxed);
    });
    wait_settled(server);
    assert_eq!(server.health()["workers"][0]["restarts"], json!(0));
}

/// Everything until the server closes; what a reset cut off is what came before it.
fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset) => break,
            Err(error) => panic!("the server neither answers nor closes: {error}"),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer of some megabytes: more than the buffers between hold.
fn long_answer() -> Value {
    json!({
        "model": "default", "messages": [{"role": "user", "content": "Hello"}], "stream": true, "n": 8,
        "max_tokens": 1500, "ignore_eos": true, "logprobs": true, "top_logprobs": 20, "temperature": 1,
    })
}

#[test]
fn readers_that_stop_hold_nothing() {
    let server = start(&[]);
    let request = post_request("/v1/chat/completions", "", &long_answer().to_string());
    let mut stalled = Vec::new();
    beside_a_bystander(&server, || {
        for _ in 0..CLIENTS {
            let mut stream = connect(&server);
            stream.write_all(&request).expect("request is written");
            let mut first = [0; 256];
            stream.read_exact(&mut first).expect("the answer begins");
            stalled.push(stream);
        }
    });
    // All of this while their connections were open on this side.
    for mut stream in stalled {
        let rest = read_to_end(&mut stream);
        assert!(!rest.contains("[DONE]"), "an answer that nobody read was kept to its end");
    }
}

#[test]
fn trickling_heads_and_bodies_are_given_up() {
    let server = start(&[]);
    beside_a_bystander(&server, || {
        let request = post_request("/v1/chat/completions", "", &"x".repeat(1000));
        let head = request.len() - 1000;
        let mut trickling: Vec<(TcpStream, usize)> = (0..2 * CLIENTS)
            .map(|index| {
                let mut stream = connect(&server);
                // Half of them trickle the head, the others the body.
                let at = if index % 2 == 0 { 0 } else { head };
                stream.write_all(&request[..at]).expect("written");
                (stream, at)
            })
            .collect();
        let started = Instant::now();
        let longest = Duration::from_secs_f64(TIMEOUT_S.parse::<f64>().expect("a number")) + READ_TIMEOUT;
        while !trickling.is_empty() {
            assert!(started.elapsed() < longest, "{} clients may still trickle", trickling.len());
            trickling.retain_mut(|(stream, at)| {
                *at += 1;
                stream.write_all(&request[*at - 1..*at]).is_ok()
            });
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn a_body_that_does_not_come_is_answered_408() {
    let server = start(&[]);
    let mut stream = connect(&server);
    let request = post_request("/v1/chat/completions", "", &"x".repeat(1000));
    stream.write_all(&request[..request.len() - 1]).expect("written");
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn clients_that_leave_at_any_moment_leave_nothing() {
    let server = start(&[]);
    let mut body = long_answer();
    body["n"] = json!(1);
    let request = post_request("/v1/chat/completions", "", &body.to_string());
    beside_a_bystander(&server, || {
        let mut random = Random::new(4);
        let mut open: Vec<TcpStream> = Vec::new();
        for _ in 0..300 {
            let mut stream = connect(&server);
            if random.below(3) == 0 {
                let cut = random.below(request.len() as u64) as usize;
                stream.write_all(&request[..cut]).expect("written");
            } else {
                stream.write_all(&request).expect("written");
                let mut some = vec![0; random.below(4000) as usize];
                if random.below(2) == 0 {
                    stream.read_exact(&mut some).expect("the answer begins");
                }
            }
            open.push(stream);
            // Some leave at once, others while later ones are at work.
            if open.len() > 12 {
                let leaving = random.below(open.len() as u64) as usize;
                drop(open.swap_remove(leaving));
            }
        }
    });
}

#[test]
fn heads_and_bodies_without_end_are_refused() {
    let server = start(&[]);
    beside_a_bystander(&server, || {
        let mut stream = connect(&server);
        let padding = "a".repeat(64 * 1024);
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nx-padding: {padding}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        let answer = read_to_end(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");

        let mut announced = connect(&server);
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
        announced.write_all(head.as_bytes()).expect("written");
        let answer = read_to_end(&mut announced);
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer:?}");

        for _ in 0..CLIENTS {
            let mut endless = connect(&server);
            let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
            endless.write_all(head.as_bytes()).expect("written");
            let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
            let mut sent = 0;
            while endless.write_all(chunk.as_bytes()).is_ok() {
                sent += 1;
                assert!(sent < 1000, "64 MB of a body were taken, limit 1 MiB");
            }
        }
    });
}

#[test]
fn bodies_in_hand_are_bounded_in_sum() {
    let server = start(&["--max-body-total", "4"]);
    let request = post_request("/v1/completions", "", &" ".repeat(900 * 1024));
    let refused = AtomicUsize::new(0);
    beside_a_bystander(&server, || {
        // All but the last byte: each holds its body as long as it may.
        let mut holding = Vec::new();
        for _ in 0..CLIENTS {
            let mut stream = connect(&server);
            // One that is refused is closed while it still writes.
            let _ = stream.write_all(&request[..request.len() - 1]);
            holding.push(stream);
        }
        for mut stream in holding {
            let answer = read_to_end(&mut stream);
            let is_full = answer.starts_with("HTTP/1.1 503 ") && answer.contains("body_memory");
            refused.fetch_add(usize::from(is_full || answer.is_empty()), Ordering::Relaxed);
        }
    });
    let counted = server.metric("rocmforge_requests_rejected_total").unwrap_or(0.0) as usize;
    // Four of them fit, less what the bystander had.
    assert!((CLIENTS - 5..=CLIENTS).contains(&counted), "{counted} of {CLIENTS} refused");
    assert!(refused.load(Ordering::Relaxed) >= CLIENTS - 5);
}
