//! The requests of a storm: as different as clients are, and the same whenever the same number is asked for.

use harness::{MODEL, Random};
use serde_json::{Value, json};

/// A request: where it goes and what it asks.
#[derive(Debug, Clone)]
pub struct Job {
    pub path: &'static str,
    pub body: Value,
}

impl Job {
    /// Most choices of one request.
    pub const CHOICES_MAX: u64 = 3;

    /// The `index`-th request.
    pub fn numbered(index: u64) -> Self {
        let mut random = Random::new(index);
        let is_chat = random.below(10) < 3;
        let mut body = json!({"model": MODEL, "seed": random.below(1000)});
        // Some end by themselves, so that crashes also meet stop tokens; most go on, so that crashes meet them at all.
        if random.below(4) > 0 {
            body["ignore_eos"] = true.into();
        }
        sampling(&mut body, &mut random);
        if random.below(10) == 0 {
            body["n"] = (2 + random.below(Self::CHOICES_MAX - 1)).into();
        }
        if random.below(5) == 0 {
            // Short ones that come up soon, and one that spans tokens.
            let first = [" the", "aea", "o t", ", and the "][random.below(4) as usize];
            body["stop"] = json!([first, "\u{e9}\u{e9}"]);
        }
        if random.below(5) > 0 {
            body["stream"] = true.into();
            if random.below(4) > 0 {
                body["stream_options"] = json!({"include_usage": true});
            }
        }
        let max_tokens = 8 + random.below(72);
        let logprobs = (random.below(4) == 0).then(|| random.below(4));
        if is_chat {
            body["messages"] = json!([{"role": "user", "content": words(&mut random)}]);
            body["max_completion_tokens"] = max_tokens.into();
            if let Some(top) = logprobs {
                body["logprobs"] = true.into();
                body["top_logprobs"] = top.into();
            }
        } else {
            body["prompt"] = words(&mut random).into();
            body["max_tokens"] = max_tokens.into();
            if let Some(top) = logprobs {
                body["logprobs"] = top.into();
            }
        }
        Self { path: if is_chat { "/v1/chat/completions" } else { "/v1/completions" }, body }
    }

    /// Whether the answer comes as a stream.
    pub fn is_streamed(&self) -> bool {
        self.body["stream"] == Value::Bool(true)
    }

    /// Choices asked for.
    pub fn choices(&self) -> usize {
        self.body["n"].as_u64().unwrap_or(1) as usize
    }

    /// Whether the answer must hold its usage.
    pub fn wants_usage(&self) -> bool {
        !self.is_streamed() || self.body["stream_options"]["include_usage"] == Value::Bool(true)
    }
}

fn sampling(body: &mut Value, random: &mut Random) {
    if random.below(3) == 0 {
        body["temperature"] = 0.into();
        return;
    }
    body["temperature"] = json!(0.5 + random.below(10) as f64 / 10.0);
    match random.below(4) {
        0 => body["top_p"] = json!(0.9),
        1 => body["top_k"] = json!(20),
        // Both depend on everything emitted, before the crash and after.
        2 => body["frequency_penalty"] = json!(0.7),
        _ => body["repetition_penalty"] = json!(1.2),
    }
}

/// A prompt. One in twelve is long enough for crashes to meet its prefill; many begin alike, for the prefix cache.
fn words(random: &mut Random) -> String {
    let most = if random.below(12) == 0 { 600 } else { 30 };
    let mut text = String::from(if random.below(2) == 0 { "Tell me about" } else { "One two" });
    for _ in 0..1 + random.below(most) {
        text.push_str(
            [" red", " blue", " one", " two", " seven", " Paris", " cats"][random.below(7) as usize],
        );
    }
    text
}
