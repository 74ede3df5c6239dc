//! Two thousand requests of mixed lengths at full load, a quarter of them cancelled in the middle: every one of the
//! others ends properly, no KV block is lost, nobody starves, memory stays flat.

use harness::{MODEL, Random, Server, ServerOptions, Stream, poll, post};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests in all.
const REQUESTS: u64 = 2000;
/// Clients at the same time; more than the worker runs sequences at once.
const CLIENTS: u64 = 48;
/// Sequences the worker runs at once, so that requests queue as well.
const SEQUENCES: &str = "24";
/// Growth of the worker's resident set allowed between a quarter of the run and its end.
const GROWTH_BYTES_MAX: f64 = 32.0 * 1024.0 * 1024.0;

fn body(random: &mut Random) -> Value {
    // One prompt in ten is long.
    let words_max = if random.below(10) == 0 { 600 } else { 40 };
    let words = 1 + random.below(words_max);
    // A shared beginning, so that the prefix cache is at work too.
    let mut prompt = String::from("Tell me about");
    for _ in 0..words {
        prompt.push_str(
            [" red", " blue", " one", " two", " seven", " Paris", " cats"][random.below(7) as usize],
        );
    }
    json!({
        "model": MODEL, "prompt": prompt, "max_tokens": 1 + random.below(60), "ignore_eos": true,
        "temperature": random.below(2), "seed": random.below(1000),
    })
}

/// One request: whole, streamed to its end, or streamed and left in the middle.
fn visit(url: &str, random: &mut Random) {
    let body = body(random);
    let wanted = body["max_tokens"].as_u64();
    match random.below(4) {
        0 => {
            let mut stream = Stream::open(url, &body);
            for _ in 0..random.below(6) {
                stream.next_chunk();
            }
        }
        1 => {
            let mut stream = Stream::open(url, &body);
            let chunks = stream.rest();
            assert!(stream.done, "a stream broke off after {:?}", chunks.last());
            assert_eq!(chunks.last().expect("chunks")["choices"][0]["finish_reason"], "length");
        }
        _ => {
            let (status, answer) = post(url, &body);
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["usage"]["completion_tokens"].as_u64(), wanted, "{answer}");
        }
    }
}

#[test]
fn two_thousand_requests_leave_nothing_behind() {
    let server = Server::ready(&ServerOptions::default().env("ROCMFORGE_SEQUENCES_MAX", SEQUENCES));
    let url = server.at("/v1/completions");
    let next = AtomicU64::new(0);
    let resident = || server.metric("rocmforge_worker_memory_used_bytes").unwrap_or(0.0);
    let mut resident_at_quarter = 0.0;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while let Some(index) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < REQUESTS)
                {
                    visit(&url, &mut Random::new(index));
                }
            });
        }
        poll("a quarter of the requests", || (next.load(Ordering::Relaxed) >= REQUESTS / 4).then_some(()));
        resident_at_quarter = resident();
    });
    poll("the pool to be whole again", || {
        let gauge = |name: &str| server.metric(name);
        let is_idle =
            gauge("rocmforge_running_sequences")? == 0.0 && gauge("rocmforge_active_requests")? == 0.0;
        let is_whole = gauge("rocmforge_engine_kv_blocks_free")? == gauge("rocmforge_engine_kv_blocks")?;
        (is_idle && is_whole).then_some(())
    });
    let growth = resident() - resident_at_quarter;
    assert!(growth <= GROWTH_BYTES_MAX, "memory grew by {growth} bytes over three quarters of the run");
    assert_eq!(server.health()["workers"][0]["restarts"], json!(0));
}
