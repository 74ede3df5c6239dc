//! The accept loop: bounded connections, a time limit for request headers, and a shutdown that lets answers finish.

use super::write_timeout::WriteTimeout;
use crate::api::Peer;
use crate::metrics;
use crate::openai::{ApiError, ErrorKind};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tower::Layer;

/// Wait after a failed accept (usually no file descriptors left), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Shortest time connections get to end in; answers have been made by then, but a client may still be reading.
const FLUSH_GRACE: Duration = Duration::from_secs(2);
/// Longest a refused connection is held to tell it so.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Refused connections told so at once; beyond them a flood is closed without a word.
const REFUSALS_MAX: usize = 64;

/// Bytes the kernel holds of an answer that is not read yet; it takes twice that, for its own books. At 100 ms to the
/// client and back, text goes out at over a megabyte a second all the same.
const SEND_BUFFER_BYTES: u32 = 128 * 1024;
/// Connections that may wait to be accepted; tokio's own choice.
const BACKLOG: u32 = 1024;
/// Longest head of a request, and bytes of an answer held beside the kernel's. Browsers send 8 KiB at most.
const HTTP_BUFFER_BYTES: usize = 32 * 1024;

/// Bounds of the accept loop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most open connections; more are answered 503 and closed.
    pub connections: usize,
    /// Longest wait for a request's headers, the first of a connection or the next.
    pub header_timeout: Duration,
    /// Longest a client may take no byte of what is written to it.
    pub write_timeout: Duration,
}

/// Opens the socket to serve on. What the kernel holds for a client that does not read is bounded here: by itself it
/// would take megabytes for each.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Connections that were open when the loop ended.
#[must_use = "dropping it cuts answers off"]
pub struct OpenConnections(GracefulShutdown);

impl OpenConnections {
    /// Lets them finish what they are sending, until the given time or for [`FLUSH_GRACE`], whichever is later.
    pub async fn finish(self, until: Instant) {
        let until = until.max(Instant::now() + FLUSH_GRACE);
        if tokio::time::timeout_at(until.into(), self.0.shutdown()).await.is_err() {
            tracing::warn!("connections still open at shutdown");
        }
    }
}

/// Serves until `shutdown` resolves; then nothing new is accepted.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> OpenConnections {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(HTTP_BUFFER_BYTES);
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            metrics::rejected("connections");
            if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refuse(stream, limits.connections)).await;
                    drop(refusal);
                });
            }
            continue;
        };
        // Tokens are small writes that must not wait for each other.
        let _ = stream.set_nodelay(true);
        let stream = WriteTimeout::new(stream, limits.write_timeout);
        let service = TowerToHyperService::new(Extension(Peer(peer)).layer(router.clone()));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    OpenConnections(graceful)
}

/// Too many connections: one clear answer, then closed.
async fn refuse(mut stream: TcpStream, limit: usize) -> std::io::Result<()> {
    let message = format!("the server has its {limit} connections open, try again later");
    let error = ApiError::new(ErrorKind::Unavailable, message).code("too_many_connections");
    let body = error.to_json();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with the request unread would reset the connection, and the client might never see the answer.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
}
