//! Unix sockets: bind, accept, connect, and the check that the peer runs as the same user. The only place that
//! names interprocess.

use super::frame::{FrameError, FrameReader, FrameWriter};
use interprocess::local_socket::tokio::prelude::*;
use interprocess::local_socket::{GenericFilePath, ListenerOptions, PeerCreds, traits::StreamCommon};
use interprocess::os::unix::local_socket::ListenerOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::io::{ReadHalf, WriteHalf};

/// Mode of the directory that holds sockets: nobody but the owner may look inside.
const DIRECTORY_MODE: u32 = 0o700;
/// Mode of a socket file.
const SOCKET_MODE: u32 = 0o600;
/// Longest path Linux takes in `sockaddr_un`, the closing NUL apart.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A socket that cannot be made, reached or trusted.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The file system or the socket layer refused.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The kernel would cut the path.
    #[error("socket path {path} is {bytes} bytes long, limit {SOCKET_PATH_BYTES_MAX}", path = path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Somebody else could put files beside the socket.
    #[error("socket directory {path} has mode {mode:o}, must be 700", path = path.display())]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The other end runs as another user, or the system does not say as whom.
    #[error("peer of socket {path} runs as uid {peer_uid:?}, this process as {own_uid}", path = path.display())]
    ForeignPeer {
        /// The socket.
        path: PathBuf,
        /// The peer's effective uid.
        peer_uid: Option<u32>,
        /// Ours.
        own_uid: u32,
    },
    /// The connection broke.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reading half of a connection.
pub type Receiver = FrameReader<tokio::io::BufReader<ReadHalf<LocalSocketStream>>>;
/// Writing half of a connection.
pub type Sender = FrameWriter<WriteHalf<LocalSocketStream>>;

/// A connection to a peer of the same user.
pub struct Connection {
    /// Messages from the peer.
    pub receiver: Receiver,
    /// Messages to the peer.
    pub sender: Sender,
    /// The peer's process id, where the system tells it.
    pub peer_pid: Option<u32>,
}

/// A bound socket. Its file is removed when the listener is dropped.
pub struct Listener {
    inner: LocalSocketListener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`, whose directory must be of mode 0700 (see [`private_directory`]). A stale file of a dead
    /// process is replaced.
    pub fn bind(path: &Path) -> Result<Self, TransportError> {
        check_length(path)?;
        check_directory(path)?;
        let io = |action| move |source| TransportError::Io { action, path: path.to_owned(), source };
        let name = path.to_fs_name::<GenericFilePath>().map_err(io("name socket"))?;
        let inner = ListenerOptions::new()
            .name(name)
            .mode(SOCKET_MODE as _)
            .try_overwrite(true)
            .max_spin_time(std::time::Duration::from_secs(1))
            .create_tokio()
            .map_err(io("bind socket"))?;
        Ok(Self { inner, path: path.to_owned() })
    }

    /// Waits for the next peer of our own user; others are refused with an error, and may be followed by a good one.
    pub async fn accept(&self) -> Result<Connection, TransportError> {
        let stream = self.inner.accept().await.map_err(|source| TransportError::Io {
            action: "accept on",
            path: self.path.clone(),
            source,
        })?;
        open(stream, &self.path)
    }
}

/// Connects to the worker that listens at `path`.
pub async fn connect(path: &Path) -> Result<Connection, TransportError> {
    check_length(path)?;
    let io = |action| move |source| TransportError::Io { action, path: path.to_owned(), source };
    let name = path.to_fs_name::<GenericFilePath>().map_err(io("name socket"))?;
    let stream = LocalSocketStream::connect(name).await.map_err(io("connect to"))?;
    open(stream, path)
}

/// Makes `path` (and missing parents) a directory only its owner can enter.
pub fn private_directory(path: &Path) -> Result<(), TransportError> {
    let io = |action| move |source| TransportError::Io { action, path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(io("create directory"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(DIRECTORY_MODE)).map_err(io("set mode of"))
}

fn check_length(path: &Path) -> Result<(), TransportError> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(TransportError::PathTooLong { path: path.to_owned(), bytes });
    }
    Ok(())
}

fn check_directory(socket: &Path) -> Result<(), TransportError> {
    let directory = match socket.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let metadata = std::fs::metadata(directory).map_err(|source| TransportError::Io {
        action: "look at directory",
        path: directory.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TransportError::OpenDirectory { path: directory.to_owned(), mode });
    }
    Ok(())
}

fn open(stream: LocalSocketStream, path: &Path) -> Result<Connection, TransportError> {
    let own_uid = nix::unistd::geteuid().as_raw();
    let peer: PeerCreds = stream.peer_creds().map_err(|source| TransportError::Io {
        action: "ask for the peer of",
        path: path.to_owned(),
        source,
    })?;
    let peer_uid = peer.euid();
    if peer_uid != Some(own_uid) {
        return Err(TransportError::ForeignPeer { path: path.to_owned(), peer_uid, own_uid });
    }
    let peer_pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
    let (read, write) = tokio::io::split(stream);
    Ok(Connection {
        receiver: FrameReader::new(tokio::io::BufReader::new(read)),
        sender: FrameWriter::new(write),
        peer_pid,
    })
}
