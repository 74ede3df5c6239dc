//! `rocmforge drain`, `restart-workers` and `status`: what an operator asks of a running server.

use super::client::{ServerClient, read_json};
use super::error::CommandError;
use crate::secret::Secret;
use clap::Args;
use serde_json::Value;
use shared::error::ExitCode;
use std::fmt::Write;
use std::time::Duration;

/// Between two looks at a server that is ending.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Which server, and what it asks for.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Server to talk to.
    #[arg(long, default_value = "http://127.0.0.1:8000", env = "ROCMFORGE_URL")]
    pub url: String,
    /// Key of the operator's routes; a server without one answers only programs on its own host.
    #[arg(long, env = "ROCMFORGE_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: Option<Secret>,
}

impl ServerArgs {
    fn client(&self) -> Result<ServerClient, CommandError> {
        ServerClient::remote(&self.url, self.admin_key.clone())
    }
}

/// Has a server refuse new requests, finish what runs and end, as SIGTERM does. Waits for the end.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Return once the order is given.
    #[arg(long)]
    pub no_wait: bool,
}

/// Restarts a server's workers one at a time. No request fails: what a worker does not finish goes on in another, or
/// in its own new process, with the same tokens.
#[derive(Debug, Args)]
pub struct RestartWorkersArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Seconds a worker may finish what it has while others serve; none: the server's --grace.
    #[arg(long, value_name = "SECONDS")]
    pub grace: Option<f64>,
}

/// Shows a server's state and each worker's in a line.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Gives the order, and waits until nothing listens any more.
pub async fn drain(args: &DrainArgs) -> Result<String, CommandError> {
    let client = args.server.client()?;
    let answer = read_json(client.post("/admin/drain", &Value::Null).await?).await?;
    let mut text = format!("draining, {} requests in flight\n", answer["in_flight"]);
    if args.no_wait {
        return Ok(text);
    }
    loop {
        match client.get("/health").await {
            Err(error) if error.exit_code == ExitCode::Unreachable => break,
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
    text.push_str("the server has ended\n");
    Ok(text)
}

/// Gives the order, and waits until the last worker serves again.
pub async fn restart_workers(args: &RestartWorkersArgs) -> Result<String, CommandError> {
    let query = args.grace.map(|grace| format!("?grace_s={grace}")).unwrap_or_default();
    let client = args.server.client()?;
    let answer =
        read_json(client.post(&format!("/admin/restart-workers{query}"), &Value::Null).await?).await?;
    let mut text = String::new();
    for worker in answer["restarted"].as_array().into_iter().flatten() {
        let away_s = worker["away_ms"].as_f64().unwrap_or(0.0) / 1e3;
        // Writing to a string does not fail.
        let _ = writeln!(text, "worker {} restarted, away for {away_s:.2} s", worker["id"]);
    }
    for id in answer["attached"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "worker {id} is attached and was left alone: its service manager restarts it");
    }
    Ok(text)
}

/// The server's own words, shortened.
pub async fn status(args: &StatusArgs) -> Result<String, CommandError> {
    let health = args.server.client()?.get("/health").await?;
    if args.json {
        return Ok(format!("{health}\n"));
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = format!(
        "{}: {} for {} s, serving {}, {} requests waiting\n",
        args.server.url.trim_end_matches('/'),
        text(&health["status"]),
        health["uptime_s"],
        text(&health["model"]),
        health["queue"]["requests"]
    );
    for worker in health["workers"].as_array().into_iter().flatten() {
        let (id, state) = (&worker["id"], text(&worker["state"]));
        let _ = write!(
            lines,
            "worker {id}: {state}, {} requests, restarts {}",
            worker["in_flight"], worker["restarts"]
        );
        for (name, value) in [("pid", &worker["pid"]), ("last exit:", &worker["last_exit"])] {
            if !value.is_null() {
                let _ = write!(lines, ", {name} {}", text(value));
            }
        }
        lines.push('\n');
    }
    Ok(lines)
}
