//! The commands' HTTP client: talks to a running server, or starts one of its own for a single command.

use super::error::CommandError;
use crate::secret::Secret;
use reqwest::{Client, Response};
use serde_json::Value;
use shared::error::ExitCode;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Between two looks at a server that is loading its model.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a server that has given up may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A server to talk to.
pub(crate) struct ServerClient {
    http: Client,
    url: String,
    api_key: Option<Secret>,
    /// The process this command started, killed with it.
    own: Option<Child>,
}

impl ServerClient {
    /// A server that runs already, at `url` like `http://127.0.0.1:8000`.
    pub(crate) fn remote(url: &str, api_key: Option<Secret>) -> Result<Self, CommandError> {
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
            .args(["serve", "--host", "127.0.0.1", "--port", "0", "--parent-pid"])
            .arg(std::process::id().to_string())
            .arg("--model")
            .arg(model)
            .env("ROCMFORGE_API_KEY", &key)
            // The model is this command's own choice.
            .env_remove("ROCMFORGE_ATTACH")
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
        let mut client = Self::remote(url, Some(Secret::new(key)))?;
        let outcome = client.wait_until_ready(&mut child).await;
        client.own = Some(child);
        match outcome {
            Ok(()) => Ok(client),
            Err(error) => {
                client.stop().await;
                Err(error)
            }
        }
    }

    /// Polls until the model is loaded, or cannot be. The server itself shows how loading goes.
    async fn wait_until_ready(&self, child: &mut Child) -> Result<(), CommandError> {
        loop {
            if self.get("/ready").await.is_ok() {
                return Ok(());
            }
            if matches!(child.try_wait(), Ok(Some(_))) {
                return Err(ended_early(child).await);
            }
            // A server tries a worker that keeps crashing again and again; one command does not wait for that.
            if let Ok(health) = self.get("/health").await
                && health["workers"][0]["state"] == "failed"
            {
                if tokio::time::timeout(EXIT_TIMEOUT, child.wait()).await.is_ok() {
                    return Err(ended_early(child).await);
                }
                let reason = health["workers"][0]["last_exit"].as_str().unwrap_or_default();
                return Err(CommandError::runtime(format!("the model cannot be loaded: {reason}")));
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
            Some(key) => request.bearer_auth(key.expose()),
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
    let code = child.wait().await.ok().and_then(|status| status.code());
    let known = code.and_then(ExitCode::from_status).filter(|known| *known != ExitCode::Ok);
    let exit_code = known.unwrap_or(ExitCode::Runtime);
    CommandError { exit_code, message: "the server for this command did not start".to_owned() }
}
