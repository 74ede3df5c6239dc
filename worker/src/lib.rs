//! The worker: one process per device, token in, token out.
//!
//! `ipc_server` takes frames from the gateway, `engine` runs steps over a scheduler and a model, `model` is one
//! forward pass over a `backend`, `sampler` turns logits into tokens. All text lives in the gateway.

pub mod backend;
pub mod batch;
pub mod commands;
pub mod model;
