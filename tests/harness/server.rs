//! A running `rocmforge serve`.

use super::{binary, get, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Lines of a server's log shown when a test fails.
const LOG_LINES_SHOWN: usize = 40;
/// What the model is called in requests.
pub const MODEL: &str = "default";

/// What differs from `rocmforge serve --port 0` on the demo model.
#[derive(Default)]
pub struct ServerOptions {
    /// Further arguments.
    pub args: Vec<String>,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
}

impl ServerOptions {
    /// Options with these further arguments.
    pub fn args(args: &[&str]) -> Self {
        Self { args: args.iter().map(ToString::to_string).collect(), ..Self::default() }
    }

    /// The same with an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server process on a loopback port of its own. Stopped when dropped.
pub struct Server {
    child: Child,
    url: String,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Starts a server and waits until its socket is open (not until the model is loaded).
    ///
    /// # Panics
    /// When it does not print its address; with its stderr.
    pub fn start(options: &ServerOptions) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let log = directory.path().join("stderr");
        let stderr = std::fs::File::create(&log).expect("log file");
        // The worker is a sibling; asking for it here makes its absence clear.
        binary("rocmforge-worker");
        let mut child = Command::new(binary("rocmforge"))
            .args(["serve", "--port", "0", "--host", "127.0.0.1"])
            // A repeated flag would be refused, so an alias among the options replaces the usual one.
            .args(
                options
                    .args
                    .iter()
                    .all(|arg| arg != "--alias")
                    .then_some(["--alias", MODEL])
                    .into_iter()
                    .flatten(),
            )
            .args(&options.args)
            // Without the line for each request, of which polls make thousands.
            .env("ROCMFORGE_LOG_LEVEL", "info,gateway::server=warn")
            .envs(options.env.iter().map(|(name, value)| (name, value)))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("rocmforge starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("stdout is readable");
        let Some(url) = line.trim().strip_prefix("listening on ") else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no address on stdout but {line:?}; stderr:\n{}", read(&log));
        };
        Self { child, url: url.to_owned(), log, _directory: directory }
    }

    /// Starts a server and waits until `/ready` says yes.
    pub fn ready(options: &ServerOptions) -> Self {
        let server = Self::start(options);
        server.wait_ready();
        server
    }

    /// Waits until `/ready` says yes.
    pub fn wait_ready(&self) {
        poll("/ready to answer 200", || (get(&self.at("/ready")).0 == 200).then_some(()));
    }

    /// The address of `path`.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Where its socket listens.
    pub fn address(&self) -> SocketAddr {
        let address = self.url.strip_prefix("http://").expect("a URL");
        address.parse().expect("an address")
    }

    /// `/health` as JSON.
    pub fn health(&self) -> Value {
        get(&self.at("/health")).1
    }

    /// Process ids of the workers that run now.
    pub fn worker_pids(&self) -> Vec<i32> {
        let health = self.health();
        let workers = health["workers"].as_array().cloned().unwrap_or_default();
        workers.iter().filter_map(|worker| worker["pid"].as_i64()).map(|pid| pid as i32).collect()
    }

    /// The value of a metric without labels, or the sum over its labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = reqwest::blocking::get(self.at("/metrics")).ok()?.text().ok()?;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// The server's process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal to the server.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the server runs");
    }

    /// Waits for the server to end by itself; its exit code, or `None` when a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        poll("the server to exit", || self.child.try_wait().expect("child is ours")).code()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        read(&self.log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("--- end of the server's log ---\n{}", tail.join("\n"));
        }
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn read(path: &std::path::Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        let _ = file.read_to_string(&mut text);
    }
    text
}
