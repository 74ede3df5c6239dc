//! The commands' HTTP client: talks to a running server, or starts one of its own for a single command.

use super::error::CommandError;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, Response};
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Between two looks at a server that is loading its model.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server to talk to.
pub(crate) struct ServerClient {
    http: Client,
    url: String,
    api_key: Option<String>,
    /// The process this command started, killed with it.
    own: Option<Child>,
}

impl ServerClient {
    /// A server that runs already, at `url` like `http://127.0.0.1:8000`.
    pub(crate) fn remote(url: &str, api_key: Option<String>) -> Result<Self, CommandError> {
        let http = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| CommandError::runtime(format!("set up the HTTP client: {error}")))?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), api_key, own: None })
    }

    /// Starts a server for `model` on a free loopback port, with a key nobody else knows, and waits until it serves.
    pub(crate) async fn start(model: &Path) -> Result<Self, CommandError> {
        let program = std::env::current_exe()
            .map_err(|error| CommandError::runtime(format!("path of this program: {error}")))?;
        let key = uuid::Uuid::new_v4().to_string();
        let mut child = Command::new(program)
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--model"])
            .arg(model)
            .env("ROCMFORGE_API_KEY", &key)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| CommandError::runtime(format!("start a server: {error}")))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .await
                .map_err(|error| CommandError::runtime(format!("address of the server: {error}")))?;
        }
        let Some(url) = line.trim().strip_prefix("listening on ") else {
            return Err(ended_early(&mut child).await);
        };
        let mut client = Self::remote(url, Some(key))?;
        client.wait_until_ready(&mut child).await?;
        client.own = Some(child);
        Ok(client)
    }

    /// Polls until the model is loaded, with a progress bar on a terminal.
    async fn wait_until_ready(&self, child: &mut Child) -> Result<(), CommandError> {
        let bar = loading_bar();
        loop {
            if self.get("/ready").await.is_ok() {
                bar.finish_and_clear();
                return Ok(());
            }
            if let Ok(health) = self.get("/health").await {
                let loading = &health["workers"][0]["loading"];
                bar.set_length(loading["total"].as_u64().unwrap_or(0));
                bar.set_position(loading["done"].as_u64().unwrap_or(0));
            }
            if matches!(child.try_wait(), Ok(Some(_))) {
                return Err(ended_early(child).await);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends a server that [`Self::start`] started, and waits until it has ended its workers.
    pub(crate) async fn stop(self) {
        let Some(mut child) = self.own else { return };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            // It may have ended by itself; then there is nothing to stop.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = child.wait().await;
    }

    /// `GET path` as JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, CommandError> {
        let request = self.authorized(self.http.get(format!("{}{path}", self.url)));
        read_json(self.answered(request.send().await)?).await
    }

    /// `POST path`; the response once its status is known to be good.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Response, CommandError> {
        let request = self.authorized(self.http.post(format!("{}{path}", self.url)).json(body));
        let response = self.answered(request.send().await)?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    fn answered(&self, outcome: reqwest::Result<Response>) -> Result<Response, CommandError> {
        outcome.map_err(|error| {
            let reason = shared::error::one_line(&error);
            let url = &self.url;
            CommandError::unreachable(format!(
                "no server answers at {url}: {reason}; start one with `rocmforge serve`, or name a model with --model"
            ))
        })
    }
}

/// The body of a response, or its error.
pub(crate) async fn read_json(response: Response) -> Result<Value, CommandError> {
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    response.json().await.map_err(|error| CommandError::runtime(format!("the server's answer: {error}")))
}

async fn refusal(response: Response) -> CommandError {
    let status = response.status();
    let body: Value = response.json().await.unwrap_or(Value::Null);
    match body["error"]["message"].as_str() {
        Some(message) => CommandError::runtime(format!("the server answered {status}: {message}")),
        None => CommandError::runtime(format!("the server answered {status}")),
    }
}

/// The server's own words are on stderr already; its exit code becomes ours.
async fn ended_early(child: &mut Child) -> CommandError {
    use shared::error::ExitCode;
    let code = child.wait().await.ok().and_then(|status| status.code());
    let exit_code = [ExitCode::ModelFile, ExitCode::Configuration, ExitCode::Usage]
        .into_iter()
        .find(|known| code == Some(i32::from(*known as u8)))
        .unwrap_or(ExitCode::Runtime);
    CommandError { exit_code, message: "the server for this command did not start".to_owned() }
}

fn loading_bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    // The template is a constant; should it not parse, the bar keeps its default look.
    if let Ok(style) = ProgressStyle::with_template("loading model {bar:40} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar
}
