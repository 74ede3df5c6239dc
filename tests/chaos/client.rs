//! One client: sends a request, holds everything about its answer that may be held against the server, and keeps
//! what must be equal in a run where workers die.

use crate::workload::Job;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// What an answer says, in whatever pieces it came. Equal for equal requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub choices: Vec<Choice>,
    /// `null` where it was not asked for.
    pub usage: Value,
}

/// One choice, put together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    pub text: String,
    pub finish_reason: String,
    /// Everything said of each token, where asked for: it shows a token lost or doubled that the text would not.
    pub logprobs: Vec<Value>,
}

/// A request's outcome as its client saw it.
#[derive(Debug)]
pub struct Visit {
    /// The answer, or what was wrong.
    pub answer: Result<Answer, String>,
    /// Between one chunk and the next.
    pub gaps: Vec<Duration>,
    pub took: Duration,
}

impl Visit {
    /// Tokens of the answer where it says so.
    pub fn tokens(&self) -> u64 {
        self.answer.as_ref().map_or(0, |answer| answer.usage["completion_tokens"].as_u64().unwrap_or(0))
    }
}

/// Sends `job` and waits for the end of its answer.
pub fn visit(client: &Client, base: &str, job: &Job) -> Visit {
    let start = Instant::now();
    let mut gaps = Vec::new();
    let answer = ask(client, base, job, &mut gaps);
    Visit { answer, gaps, took: start.elapsed() }
}

fn ask(client: &Client, base: &str, job: &Job, gaps: &mut Vec<Duration>) -> Result<Answer, String> {
    let sent = client.post(format!("{base}{}", job.path)).json(&job.body).send();
    let response = sent.map_err(|error| format!("no answer: {error:?}"))?;
    let status = response.status();
    if status != 200 {
        return Err(format!("status {status}: {}", response.text().unwrap_or_default()));
    }
    let answer = if job.is_streamed() { streamed(response, job, gaps)? } else { whole(response)? };
    check(&answer, job)?;
    Ok(answer)
}

fn whole(response: Response) -> Result<Answer, String> {
    let body: Value = response.json().map_err(|error| format!("answer is cut: {error:?}"))?;
    let listed = body["choices"].as_array().ok_or("no choices")?;
    let mut choices = vec![Choice::default(); listed.len()];
    for item in listed {
        take(&mut choices, item)?;
    }
    Ok(Answer { choices, usage: body["usage"].clone() })
}

/// Reads a stream to its end. Chunk by chunk: the same head, one `[DONE]` at the end and nothing behind it, a choice
/// opened once and ended once, usage once and last.
fn streamed(response: Response, job: &Job, gaps: &mut Vec<Duration>) -> Result<Answer, String> {
    let mut answer = Answer { choices: vec![Choice::default(); job.choices()], usage: Value::Null };
    let mut head = Value::Null;
    let mut opened = vec![false; job.choices()];
    let mut is_done = false;
    let mut last: Option<Instant> = None;
    for line in BufReader::new(response).lines() {
        let line = line.map_err(|error| format!("stream broke: {error:?}"))?;
        if line.is_empty() || line.starts_with(':') {
            continue;
        }
        let data = line.strip_prefix("data: ").ok_or_else(|| format!("line {line:?} in a stream"))?;
        if is_done {
            return Err(format!("{data:?} behind [DONE]"));
        }
        if data == "[DONE]" {
            is_done = true;
            continue;
        }
        let now = Instant::now();
        gaps.extend(last.replace(now).map(|before| now - before));
        let chunk: Value = serde_json::from_str(data).map_err(|error| format!("chunk {data:?}: {error}"))?;
        if !chunk["error"].is_null() {
            return Err(format!("stream failed: {}", chunk["error"]));
        }
        let own_head = json!([chunk["id"], chunk["created"], chunk["object"], chunk["model"]]);
        if head.is_null() {
            head = own_head;
        } else if head != own_head {
            return Err(format!("head {own_head} after {head}"));
        }
        if !answer.usage.is_null() {
            return Err(format!("{chunk} behind the usage"));
        }
        answer.usage = chunk["usage"].clone();
        for item in chunk["choices"].as_array().ok_or("chunk without choices")? {
            if item["delta"]["role"].is_string() {
                let index = item["index"].as_u64().unwrap_or(u64::MAX) as usize;
                let opened = opened.get_mut(index).ok_or_else(|| format!("index {index}"))?;
                if std::mem::replace(opened, true) {
                    return Err(format!("choice {index} is opened twice"));
                }
            }
            take(&mut answer.choices, item)?;
        }
    }
    if is_done { Ok(answer) } else { Err("stream ended without [DONE]".to_owned()) }
}

/// Adds a choice or a piece of one to what came before.
fn take(choices: &mut [Choice], item: &Value) -> Result<(), String> {
    let index = item["index"].as_u64().ok_or("choice without index")? as usize;
    let count = choices.len();
    let choice = choices.get_mut(index).ok_or_else(|| format!("choice {index} of {count}"))?;
    if !choice.finish_reason.is_empty() {
        return Err(format!("choice {index} goes on after its end: {item}"));
    }
    let texts = [&item["text"], &item["message"]["content"], &item["delta"]["content"]];
    texts.iter().filter_map(|text| text.as_str()).for_each(|text| choice.text.push_str(text));
    let logprobs = &item["logprobs"];
    choice.logprobs.extend(logprobs["content"].as_array().into_iter().flatten().cloned());
    // The older form: parallel lists.
    for (at, token) in logprobs["tokens"].as_array().into_iter().flatten().enumerate() {
        let fields = ["token_logprobs", "top_logprobs", "text_offset"];
        let [logprob, top, offset] = fields.map(|field| logprobs[field][at].clone());
        choice.logprobs.push(json!([token, logprob, top, offset]));
    }
    if let Some(reason) = item["finish_reason"].as_str() {
        reason.clone_into(&mut choice.finish_reason);
    }
    Ok(())
}

/// What holds of an answer by itself.
fn check(answer: &Answer, job: &Job) -> Result<(), String> {
    if answer.choices.len() != job.choices() {
        return Err(format!("{} choices, asked for {}", answer.choices.len(), job.choices()));
    }
    if let Some(index) = answer.choices.iter().position(|choice| choice.finish_reason.is_empty()) {
        return Err(format!("choice {index} has no end"));
    }
    if answer.usage.is_null() == job.wants_usage() {
        return Err(format!("usage is {}", answer.usage));
    }
    Ok(())
}
