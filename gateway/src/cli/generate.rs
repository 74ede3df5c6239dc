//! `rocmforge generate`: one answer on stdout, from a running server or from a model file.

use super::client::{ServerClient, read_json};
use super::error::CommandError;
use super::print;
use crate::secret::Secret;
use clap::Args;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// Longest prompt taken from standard input.
const PROMPT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Generates text for one prompt.
///
/// Asks the server at --url; with --model it loads that file for this one answer.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What to say to the model; `-` reads it from standard input.
    #[arg(long)]
    pub prompt: String,
    /// GGUF file to load for this answer.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Server to ask when no --model is given.
    #[arg(long, default_value = "http://127.0.0.1:8000", env = "ROCMFORGE_URL")]
    pub url: String,
    /// Key the server asks for.
    #[arg(long, env = "ROCMFORGE_API_KEY", hide_env_values = true)]
    pub api_key: Option<Secret>,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 512)]
    pub max_tokens: u32,
    /// 0 always takes the most likely token; the default is the server's.
    #[arg(long)]
    pub temperature: Option<f32>,
    /// Makes sampling repeatable.
    #[arg(long)]
    pub seed: Option<u64>,
    /// System message.
    #[arg(long, conflicts_with = "raw")]
    pub system: Option<String>,
    /// Continue the prompt as plain text, without the chat template.
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object instead of the text.
    #[arg(long)]
    pub json: bool,
}

/// What the answer amounts to.
struct Answer {
    text: String,
    finish_reason: Value,
    usage: Value,
}

/// Runs the command.
pub async fn run(args: &GenerateArgs) -> Result<(), CommandError> {
    let prompt = read_prompt(&args.prompt)?;
    let client = match &args.model {
        Some(model) => ServerClient::start(model).await?,
        None => ServerClient::remote(&args.url, args.api_key.clone())?,
    };
    let outcome = answer(args, &prompt, &client).await;
    // Also after a failure: a server of our own must not be left behind.
    client.stop().await;
    outcome
}

async fn answer(args: &GenerateArgs, prompt: &str, client: &ServerClient) -> Result<(), CommandError> {
    let models = client.get("/v1/models").await?;
    let body = request_body(args, prompt, &models["data"][0]["id"]);
    let path = if args.raw { "/v1/completions" } else { "/v1/chat/completions" };
    if args.json {
        let answer = whole(read_json(client.post(path, &body).await?).await?);
        let Answer { text, finish_reason, usage } = answer;
        let object =
            json!({ "text": text, "finish_reason": finish_reason, "usage": usage, "model": body["model"] });
        print(&format!("{object}\n"))?;
    } else if std::io::stdout().is_terminal() {
        stream(client, path, body).await?;
    } else {
        let answer = whole(read_json(client.post(path, &body).await?).await?);
        print(&format!("{}\n", answer.text))?;
    }
    Ok(())
}

fn read_prompt(argument: &str) -> Result<String, CommandError> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut prompt = String::new();
    std::io::stdin()
        .lock()
        .take(PROMPT_BYTES_MAX)
        .read_to_string(&mut prompt)
        .map_err(|error| CommandError::runtime(format!("prompt on standard input: {error}")))?;
    Ok(prompt)
}

fn request_body(args: &GenerateArgs, prompt: &str, model: &Value) -> Value {
    let mut body = json!({ "model": model, "max_tokens": args.max_tokens });
    if args.raw {
        body["prompt"] = json!(prompt);
    } else {
        let system = args.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let user = json!({ "role": "user", "content": prompt });
        body["messages"] = system.chain([user]).collect();
    }
    if let Some(temperature) = args.temperature {
        body["temperature"] = json!(temperature);
    }
    if let Some(seed) = args.seed {
        body["seed"] = json!(seed);
    }
    body
}

/// Chat and plain completions carry their text in different places.
fn choice_text<'a>(choice: &'a Value, chat_field: &str) -> &'a str {
    choice["text"].as_str().or_else(|| choice[chat_field]["content"].as_str()).unwrap_or_default()
}

fn whole(body: Value) -> Answer {
    let choice = &body["choices"][0];
    Answer {
        text: choice_text(choice, "message").to_owned(),
        finish_reason: choice["finish_reason"].clone(),
        usage: body["usage"].clone(),
    }
}

/// Prints the answer as it comes.
async fn stream(client: &ServerClient, path: &str, mut body: Value) -> Result<(), CommandError> {
    body["stream"] = Value::Bool(true);
    let mut chunks = client.post(path, &body).await?.bytes_stream();
    let mut pending = Vec::new();
    while let Some(bytes) = chunks.next().await {
        let bytes = bytes
            .map_err(|error| CommandError::runtime(format!("the server's stream broke off: {error}")))?;
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            print(&stream_text(&line)?)?;
        }
    }
    print("\n")
}

/// The text in one line of the event stream; comments and ends have none.
fn stream_text(line: &[u8]) -> Result<String, CommandError> {
    let line = String::from_utf8_lossy(line);
    let Some(data) = line.trim_end().strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
        return Ok(String::new());
    };
    let chunk: Value = serde_json::from_str(data)
        .map_err(|error| CommandError::runtime(format!("the server's stream: {error}")))?;
    match chunk["error"]["message"].as_str() {
        Some(message) => Err(CommandError::runtime(message)),
        None => Ok(choice_text(&chunk["choices"][0], "delta").to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_lines_give_their_text() {
        let text = |line: &str| stream_text(line.as_bytes()).map_err(|error| error.message);
        assert_eq!(text(": keep-alive\n"), Ok(String::new()));
        assert_eq!(text("data: [DONE]\n"), Ok(String::new()));
        assert_eq!(text("data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n"), Ok("hi".to_owned()));
        assert_eq!(text("data: {\"choices\":[{\"text\":\"ho\"}]}\r\n"), Ok("ho".to_owned()));
        assert_eq!(text("data: {\"error\":{\"message\":\"gone\"}}\n"), Err("gone".to_owned()));
        assert!(text("data: {oops\n").is_err());
    }
}
