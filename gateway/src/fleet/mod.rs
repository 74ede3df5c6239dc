//! The workers as one: takes token requests, keeps the processes that answer them alive, and loses none of them when
//! one dies. The rest of the gateway talks to this module and to nothing below it.
//!
//! ```text
//! Fleet ──► core (one lock: ledger + routing + admission) ◄── keeper, one task per worker
//!                                                                ├─ supervisor::machine, watchdog (decide)
//!                                                                ├─ supervisor::process           (child, stderr)
//!                                                                └─ worker_client                 (socket)
//! ```
//! What holds always: a request that was taken ends in exactly one terminal event; nothing here waits for a slow
//! consumer; when the last [`Fleet`] is dropped, every process
//! of ours is killed; attached workers go on without us. Text is none of its business: tokens in,
//! tokens out.

mod config;
mod core;
mod keeper;
mod metrics;
mod notice;
mod request;
mod rolling;
mod run_dir;
mod snapshot;
mod state;

pub use crate::admission::{PROMPT_TOKENS_MAX, QueueLimits, SubmitError};
pub use crate::ledger::RequestError;
pub use crate::supervisor::exit::{ExitKind, LastExit};
pub use crate::supervisor::machine::WorkerState;
pub use crate::supervisor::{SupervisorTiming, WorkerConfig};
pub use config::FleetConfig;
pub use request::{FleetEvent, TokenRequest, TokenStream};
pub use rolling::{RestartError, Restarted};
pub use run_dir::private_run_dir;
pub use snapshot::{FleetSnapshot, LoadProgress, WorkerSnapshot};

use self::core::Core;
use self::keeper::{Order, Origin, Post};
use self::run_dir::RunDir;
use crate::supervisor::process::Spawner;
use shared::error::Category;
use shared::ids::WorkerId;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

/// Most workers of one gateway: far more devices than a host holds.
pub const WORKERS_MAX: usize = 256;
/// How often deadlines are looked at and what a pause held back is handed out.
const TICK: Duration = Duration::from_millis(20);
/// Ticks between two recordings of the gauges: one second.
const TICKS_PER_RECORD: u32 = 50;
/// Orders that may wait for a keeper: a restart, and the end.
const ORDERS_MAX: usize = 2;
/// How often a shutdown looks whether the requests are done.
const SHUTDOWN_LOOK: Duration = Duration::from_millis(5);
/// How long a killed process may take to go away, beyond the grace it had; the kernel may be busy with its memory.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a fleet cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Nothing to run.
    #[error("no worker configured")]
    NoWorkers,
    /// More than the gateway's ids can tell apart.
    #[error("{workers} workers configured, limit {WORKERS_MAX}")]
    TooManyWorkers {
        /// How many.
        workers: usize,
    },
    /// The sockets' directory cannot be made.
    #[error("run directory {path}", path = path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could reach into the sockets' directory.
    #[error("run directory {path} has mode {mode:o} and owner {owner}, must be a directory of our own with mode 700", path = path.display())]
    SharedDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner's uid.
        owner: u32,
    },
    /// The kernel would cut the sockets' paths.
    #[error("socket path {path} is {bytes} bytes long, limit {limit}", limit = run_dir::SOCKET_PATH_BYTES_MAX, path = path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// No thread to start processes from.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl FleetError {
    /// Who can do something about it.
    pub fn category(&self) -> Category {
        Category::Fatal
    }
}

/// A handle to the running workers. Clones share them; when the last one is dropped, they are killed.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    run_dir: RunDir,
    timing: SupervisorTiming,
    /// Held by the one rolling restart at a time.
    rolling: tokio::sync::Mutex<()>,
    keepers: Mutex<Vec<KeeperHandle>>,
    _clock: AbortOnDropHandle<()>,
    /// Last, since its thread's end is the death signal of what it started.
    _spawner: Arc<Spawner>,
}

/// Whose process a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Managed,
    Attached,
}

struct KeeperHandle {
    kind: Kind,
    orders: mpsc::Sender<Order>,
    task: AbortOnDropHandle<()>,
}

impl Fleet {
    /// Starts every worker and returns at once; readiness shows in [`Self::snapshot`]. Needs a tokio runtime, and the
    /// metrics recorder installed before.
    pub fn start(config: FleetConfig) -> Result<Self, FleetError> {
        let FleetConfig { workers, attached, vocab_size, run_dir, timing, queue } = config;
        let count = workers.len() + attached.len();
        match count {
            0 => return Err(FleetError::NoWorkers),
            count if count > WORKERS_MAX => return Err(FleetError::TooManyWorkers { workers: count }),
            _ => {}
        }
        let run_dir = RunDir::make(&run_dir, workers.len())?;
        metrics::describe();
        let spawner = Arc::new(Spawner::start().map_err(FleetError::Thread)?);
        let core = Arc::new(Core::new(count, queue));
        let managed = workers.into_iter().zip(run_dir.sockets().to_vec()).map(|(config, socket)| {
            let spawner = Arc::clone(&spawner);
            (Origin::Managed { config, spawner }, socket)
        });
        let attached = attached.into_iter().map(|socket| (Origin::Attached { vocab_size }, socket));
        let posts = managed.chain(attached).enumerate().map(|(index, (origin, socket))| Post {
            id: WorkerId(index as u32),
            origin,
            socket,
            timing,
            core: Arc::clone(&core),
        });
        let keepers = posts.map(KeeperHandle::start).collect();
        let clock = AbortOnDropHandle::new(tokio::spawn(run_clock(Arc::clone(&core))));
        let inner = Inner {
            core,
            run_dir,
            timing,
            rolling: tokio::sync::Mutex::new(()),
            keepers: Mutex::new(keepers),
            _clock: clock,
            _spawner: spawner,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes a request or says at once why not.
    pub fn submit(&self, request: TokenRequest) -> Result<TokenStream, SubmitError> {
        self.inner.core.submit(request)
    }

    /// Why not even the shortest request would be taken now.
    pub fn room(&self) -> Result<(), SubmitError> {
        self.inner.core.room()
    }

    /// The fleet now. Cheap, and never waits for a worker.
    pub fn snapshot(&self) -> FleetSnapshot {
        self.inner.core.snapshot()
    }

    /// A counter that grows with every change a snapshot would show (states, load progress; not single tokens).
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.core.watch()
    }

    /// From now on this many requests, and tokens of them, may wait.
    pub fn set_queue_limits(&self, requests: usize, tokens: u64) {
        self.inner.core.set_queue_limits(requests, tokens);
    }

    /// Refuses new requests from now on; those taken go on. [`Self::snapshot`] is unready at once.
    pub fn drain(&self) {
        self.inner.core.drain();
    }

    /// Drains, waits up to `grace` for the requests, fails the rest, ends and reaps the workers, removes the sockets.
    /// A second call returns at once.
    pub async fn shutdown(&self, grace: Duration) {
        let inner = &self.inner;
        inner.core.drain();
        let keepers = std::mem::take(&mut *inner.keepers.lock().unwrap_or_else(PoisonError::into_inner));
        let requests_done = async {
            while inner.core.requests() > 0 {
                tokio::time::sleep(SHUTDOWN_LOOK).await;
            }
        };
        if tokio::time::timeout(grace, requests_done).await.is_err() {
            inner.core.fail_all(&RequestError::ShuttingDown);
        }
        for keeper in &keepers {
            // A keeper whose worker has stopped takes no orders.
            let _ = keeper.orders.try_send(Order::Drain(Duration::ZERO));
        }
        let all_gone = async {
            for keeper in keepers {
                // A keeper that panicked has dropped its process, and killed it by that.
                let _ = keeper.task.await;
            }
        };
        if tokio::time::timeout(inner.timing.terminate_grace + REAP_TIMEOUT, all_gone).await.is_err() {
            tracing::error!("a worker process does not end after SIGKILL");
        }
        inner.run_dir.remove();
    }
}

impl KeeperHandle {
    fn start(post: Post) -> Self {
        let kind = match post.origin {
            Origin::Managed { .. } => Kind::Managed,
            Origin::Attached { .. } => Kind::Attached,
        };
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let task: JoinHandle<()> = tokio::spawn(keeper::run(post, inbox));
        Self { kind, orders, task: AbortOnDropHandle::new(task) }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.core.fail_all(&RequestError::ShuttingDown);
    }
}

async fn run_clock(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut until_record = 0;
    loop {
        ticks.tick().await;
        core.tick(Instant::now());
        if until_record == 0 {
            metrics::record(&core.snapshot());
            until_record = TICKS_PER_RECORD;
        }
        until_record -= 1;
    }
}
