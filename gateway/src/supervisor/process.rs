//! A worker's process: started, signalled, reaped, its stderr turned into log lines. Used by `fleet::keeper`.
//!
//! What holds always: a process is reaped by [`WorkerProcess::wait`] or, if it is dropped before, killed and reaped by
//! the runtime; of stderr no more than [`STDERR_LINES_KEPT`] lines of [`STDERR_LINE_BYTES_MAX`] are held.

use super::WorkerConfig;
use super::exit::ExitKind;
use super::worker_log::Line;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

/// Lines of stderr kept for errors and `/health`: a panic message with a short backtrace.
const STDERR_LINES_KEPT: usize = 20;
/// Bytes of one line that are kept.
const STDERR_LINE_BYTES_MAX: usize = 2048;
/// How long the rest of stderr is waited for after the process is gone; a grandchild may hold the pipe open.
const STDERR_REST: Duration = Duration::from_millis(300);

/// Starts processes from one thread that lives as long as the fleet. `PR_SET_PDEATHSIG`, by which a worker asks to be
/// killed with the gateway, follows the thread that started it, and the runtime's threads may come and go.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: std::sync::mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    command: Command,
    answer: oneshot::Sender<std::io::Result<Child>>,
}

impl Spawner {
    /// Starts the thread; it ends when the spawner is dropped. Needs a tokio runtime.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("worker-spawner".to_owned()).spawn(move || {
            let _entered = runtime.enter();
            for mut job in queue {
                // A child nobody waits for any more is dropped here, and killed by that.
                let _ = job.answer.send(job.command.spawn());
            }
        })?;
        Ok(Self { jobs })
    }

    async fn spawn(&self, command: Command) -> std::io::Result<Child> {
        let (answer, outcome) = oneshot::channel();
        let gone = || std::io::Error::other("spawner thread has ended");
        self.jobs.send(Job { command, answer }).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }
}

/// A worker's running process.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    child: Child,
    pid: u32,
    stderr: AbortOnDropHandle<()>,
    tail: Arc<Mutex<VecDeque<String>>>,
}

impl WorkerProcess {
    /// Runs `program serve --socket PATH --parent-pid PID args…` in its own process group; the parent module says why.
    /// The pid is ours: a worker whose parent is another by the time it asks for the death signal has lost us already.
    pub(crate) async fn spawn(
        spawner: &Spawner,
        config: &WorkerConfig,
        socket: &Path,
        worker: u32,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(&config.program);
        command
            .arg("serve")
            .arg("--socket")
            .arg(socket)
            .arg("--parent-pid")
            .arg(std::process::id().to_string())
            .args(&config.args)
            // Keys are the gateway's business.
            .env_remove("ROCMFORGE_API_KEY")
            .env_remove("ROCMFORGE_API_KEYS")
            .env_remove("ROCMFORGE_ADMIN_KEY")
            .envs(config.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = spawner.spawn(command).await?;
        let pid = child.id().ok_or_else(|| std::io::Error::other("process ended before it had an id"))?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let pipe = child.stderr.take();
        let kept = Arc::clone(&tail);
        let stderr = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(pipe) = pipe {
                forward_lines(pipe, worker, &kept).await;
            }
        }));
        Ok(Self { child, pid, stderr, tail })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Signals the process and what it may have started. The id is ours until [`Self::wait`] has reaped it.
    pub(crate) fn signal(&self, signal: Signal) {
        let group = i32::try_from(self.pid).map(Pid::from_raw);
        // A process that is gone already is what was wanted.
        let _ = group.map(|group| killpg(group, signal));
    }

    /// Waits until the process is gone, and reaps it. Cancel-safe.
    pub(crate) async fn wait(&mut self) -> ExitKind {
        match self.child.wait().await {
            Ok(status) => status.into(),
            // Only a wait for a process that was never ours fails; treat it as gone for unknown reasons.
            Err(_) => ExitKind::Signal(0),
        }
    }

    /// The last lines of stderr of a process that is gone.
    pub(crate) async fn last_words(self) -> Vec<String> {
        let _ = tokio::time::timeout(STDERR_REST, self.stderr).await;
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

async fn forward_lines(pipe: ChildStderr, worker: u32, kept: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while let Some(whole) = read_line(&mut reader, &mut line).await {
        let text = String::from_utf8_lossy(whole).trim_end().to_owned();
        if text.is_empty() {
            continue;
        }
        let line = Line::parse(&text);
        let text = line.kept();
        line.log(worker);
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == STDERR_LINES_KEPT {
            kept.pop_front();
        }
        kept.push_back(text);
    }
}

/// The next line, cut at [`STDERR_LINE_BYTES_MAX`]; `None` at the end.
async fn read_line<'a>(reader: &mut BufReader<ChildStderr>, line: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    line.clear();
    let mut read_any = false;
    loop {
        let chunk = reader.fill_buf().await.ok()?;
        if chunk.is_empty() {
            return read_any.then_some(line.as_slice());
        }
        read_any = true;
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(chunk.len());
        let room = STDERR_LINE_BYTES_MAX.saturating_sub(line.len());
        line.extend_from_slice(&chunk[..taken.min(room)]);
        reader.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() {
            return Some(line.as_slice());
        }
    }
}
