//! The accept loop: bounded connections, a time limit for request headers, and a shutdown that lets answers finish.

use crate::openai::{ApiError, ErrorKind};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Wait after a failed accept (usually no file descriptors left), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Longest wait for connections to end once `shutdown` has resolved; answers have been made by then.
const FLUSH_GRACE: Duration = Duration::from_secs(2);
/// Longest a refused connection is held to tell it so.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Refused connections told so at once; beyond them a flood is closed without a word.
const REFUSALS_MAX: usize = 64;

/// Bounds of the accept loop.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most open connections; more are answered 503 and closed.
    pub connections: usize,
    /// Longest wait for a request's headers, the first of a connection or the next.
    pub header_timeout: Duration,
}

/// Serves until `shutdown` resolves, then lets connections finish what they are sending.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
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
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(FLUSH_GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections still open at shutdown");
    }
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
