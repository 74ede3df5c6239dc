//! Ten thousand damaged request bodies, always the same ones: every answer is well-formed, none is a server error.

use crate::scripted::{Script, Server};
use serde_json::{Value, json};

const MUTATIONS: u64 = 10_000;

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn seeds() -> [(&'static str, Value); 2] {
    let chat = json!({
        "model": "tiny", "stream": false, "n": 1, "temperature": 0.7, "top_p": 0.9, "seed": 4, "max_tokens": 5,
        "stop": ["x", "\n"], "logit_bias": {"12": 3}, "logprobs": true, "top_logprobs": 3, "presence_penalty": 0.5,
        "stream_options": null, "response_format": {"type": "text"}, "tools": [],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": null,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "ü"},
        ],
    });
    let completion = json!({
        "model": "tiny", "prompt": ["Hi", "Ho"], "n": 2, "stop": "q", "logprobs": 2, "stream": true, "max_tokens": 4,
        "stream_options": {"include_usage": true}, "logit_bias": {"5": -1.5}, "echo": false, "best_of": 1, "top_k": 5,
    });
    [("/v1/chat/completions", chat), ("/v1/completions", completion)]
}

fn odd_value(random: &mut Random) -> Value {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(1.5),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("\u{0}"),
        json!("x".repeat(3000)),
        json!([]),
        json!({}),
        json!([[[[]]]]),
        json!({"a": {"b": []}}),
        json!([null, 1, "x"]),
        json!("🌍"),
    ];
    odd[random.below(odd.len())].clone()
}

/// Replaces, removes or doubles something somewhere inside.
fn mutate_tree(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(object) if !object.is_empty() && random.below(4) > 0 => {
            let key = object.keys().nth(random.below(object.len())).cloned().unwrap_or_default();
            match random.below(6) {
                0 => drop(object.remove(&key)),
                1 => drop(object.insert(format!("{key}_"), odd_value(random))),
                2 => drop(object.insert(key, odd_value(random))),
                _ => mutate_tree(&mut object[&key], random),
            }
        }
        Value::Array(items) if !items.is_empty() && random.below(4) > 0 => {
            let index = random.below(items.len());
            match random.below(5) {
                0 => drop(items.remove(index)),
                1 => items.extend_from_within(..),
                _ => mutate_tree(&mut items[index], random),
            }
        }
        other => *other = odd_value(random),
    }
}

fn mutate_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let index = random.below(bytes.len().max(1));
        match random.below(4) {
            _ if bytes.is_empty() => {}
            0 => bytes[index] ^= 1 << random.below(8),
            1 => bytes.truncate(index),
            2 => bytes.insert(index, random.next() as u8),
            _ => drop(bytes.remove(index)),
        }
    }
}

#[tokio::test]
async fn mutated_bodies_never_harm() {
    let server = Server::new(Script::Says("Hello"));
    let seeds = seeds();
    let (mut served, mut refused) = (0, 0);
    for seed in 0..MUTATIONS {
        let mut random = Random(seed);
        let (path, body) = &seeds[random.below(seeds.len())];
        let mut body = body.clone();
        for _ in 0..random.below(3) {
            mutate_tree(&mut body, &mut random);
        }
        let mut bytes = body.to_string().into_bytes();
        if random.below(3) == 0 {
            mutate_bytes(&mut bytes, &mut random);
        }
        let answer = server.post(path, bytes).await;
        match answer.status {
            200 if answer.header("content-type") == "text/event-stream" => drop(answer.chunks()),
            200 => drop(answer.json()),
            400 | 404 => {
                answer.error();
                refused += 1;
                continue;
            }
            status => panic!("seed {seed}: {status} {}", answer.text),
        }
        served += 1;
    }
    assert!(
        served > 1000 && refused > 1000,
        "{served} served, {refused} refused: the mutations have lost their teeth"
    );
}
