//! Small HTTP client for the suites: JSON in, status and JSON out, and SSE streams line by line.

use super::DEADLINE;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};

fn client() -> reqwest::blocking::Client {
    reqwest::blocking::Client::builder().timeout(DEADLINE).build().expect("HTTP client")
}

fn split(response: reqwest::Result<reqwest::blocking::Response>) -> (u16, Value) {
    match response {
        // No answer at all is status 0: polls go on, assertions fail.
        Err(_) => (0, Value::Null),
        Ok(response) => {
            let status = response.status().as_u16();
            (status, response.json().unwrap_or(Value::Null))
        }
    }
}

/// `GET`; status (0 without an answer) and body.
pub fn get(url: &str) -> (u16, Value) {
    split(client().get(url).send())
}

/// `POST` of a JSON body; status (0 without an answer) and body.
pub fn post(url: &str, body: &Value) -> (u16, Value) {
    split(client().post(url).json(body).send())
}

/// A greedy chat request with one user message.
pub fn chat_body(question: &str) -> Value {
    json!({
        "model": super::MODEL,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 500,
    })
}

/// An open SSE stream. Dropping it closes the connection.
pub struct Stream {
    lines: BufReader<reqwest::blocking::Response>,
    /// Whether `[DONE]` came.
    pub done: bool,
}

impl Stream {
    /// Posts `body` with `stream: true`.
    ///
    /// # Panics
    /// When the answer is no event stream.
    pub fn open(url: &str, body: &Value) -> Self {
        let mut body = body.clone();
        body["stream"] = Value::Bool(true);
        let response = client().post(url).json(&body).send().expect("an answer");
        let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        assert!(kind.starts_with("text/event-stream"), "{} {kind}", response.status());
        Self { lines: BufReader::new(response), done: false }
    }

    /// The next chunk; `None` at the end. Comments are skipped.
    ///
    /// # Panics
    /// When a line is neither a comment nor data.
    pub fn next_chunk(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => {}
                comment if comment.starts_with(':') => {}
                "data: [DONE]" => self.done = true,
                data => {
                    let json = data.strip_prefix("data: ").unwrap_or_else(|| panic!("stream line {data:?}"));
                    return Some(serde_json::from_str(json).expect("chunk is JSON"));
                }
            }
        }
    }

    /// All remaining chunks.
    pub fn rest(&mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.next_chunk()).collect()
    }

    /// The text of chat chunks of the first choice, put together.
    pub fn chat_text(chunks: &[Value]) -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
    }
}
