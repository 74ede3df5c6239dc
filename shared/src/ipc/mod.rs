//! The protocol between gateway and worker: messages, framing, handshake.
//!
//! One Unix socket per worker, many requests multiplexed by id. The worker listens (so that a worker run by
//! systemd outlives a gateway), the gateway connects. A connection opens with a [`message::ToWorker::Hello`] and
//! the worker's [`message::FromWorker::Hello`]; versions must be equal, otherwise both sides say so and close.
//! What holds always: any byte string fed to the decoder gives a message or an error, no frame makes either side
//! allocate more than [`frame::FRAME_BYTES_MAX`], and a bad frame closes this one connection only.
//!
//! bincode is named only in `codec`, interprocess only in `transport`.

mod codec;
pub mod frame;
pub mod message;
pub mod transport;

pub use frame::{FrameError, FrameReader, FrameWriter};
pub use message::{FromWorker, ToWorker};

/// Raised with every change of a message's encoding. Gateway and worker of one release share it.
pub const PROTOCOL_VERSION: u32 = 3;
