//! The HTTP interface over a scripted source of tokens: shapes, refusals, streams. No worker, no socket.

#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

mod chat;
mod completions;
mod limits;
mod mutations;
mod refusals;
mod scripted;
mod sockets;
mod status;
