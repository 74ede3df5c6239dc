//! The first message each way on a new connection.

use shared::ipc::message::DeviceInfo;
use shared::ipc::transport::Connection;
use shared::ipc::{FrameError, FromWorker, PROTOCOL_VERSION, ToWorker};
use std::time::Duration;

/// Time a peer has for its `Hello`; it comes with the connection otherwise.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that does not become a gateway.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(
        "gateway speaks protocol version {theirs}, this worker {PROTOCOL_VERSION}; run both of one release"
    )]
    Version { theirs: u32 },
    #[error("first message is not a hello")]
    NotHello,
    #[error("peer closed before its hello")]
    Closed,
    #[error("no hello within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Silent,
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Exchanges hellos. Ours is sent whatever the peer's version, so that it can say what is wrong.
pub(super) async fn shake_hands(
    mut connection: Connection,
    device: DeviceInfo,
) -> Result<Connection, HandshakeError> {
    let exchange = async {
        let theirs = match connection.receiver.read::<ToWorker>().await? {
            Some(ToWorker::Hello { version }) => version,
            Some(_) => return Err(HandshakeError::NotHello),
            None => return Err(HandshakeError::Closed),
        };
        let hello = FromWorker::Hello { version: PROTOCOL_VERSION, pid: std::process::id(), device };
        connection.sender.write(&hello).await?;
        if theirs == PROTOCOL_VERSION { Ok(()) } else { Err(HandshakeError::Version { theirs }) }
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, exchange).await.map_err(|_| HandshakeError::Silent)??;
    Ok(connection)
}
